package main

import (
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"spillway/internal/guest"
)

// scrape returns what a handler answers to GET /metrics, without what the library adds.
func scrape(t *testing.T, h http.Handler) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(families, func(name string, _ *dto.MetricFamily) bool { return !strings.HasPrefix(name, "spillway_") })
	return families
}

// table is how docs/operate.md lists metrics.
func table(families map[string]*dto.MetricFamily) string {
	var b strings.Builder
	b.WriteString("| metric | type | labels | |\n|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(families)) {
		var labels []string
		for _, l := range families[name].Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, strings.ToLower(families[name].GetType().String()), strings.Join(labels, ", "), families[name].GetHelp())
	}
	return b.String()
}

// TestOperatePage: docs/operate.md lists the metrics that there are, and names no others; and the log lines that it explains are logged.
func TestOperatePage(t *testing.T) {
	agent, err := guest.NewAgent(guest.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	text, err := os.ReadFile("../../docs/operate.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)

	known := map[string]bool{}
	for _, h := range []http.Handler{hostDaemon(t).AdminHandler(), agent.AdminHandler()} {
		families := scrape(t, h)
		if want := table(families); !strings.Contains(page, want) {
			t.Errorf("docs/operate.md lacks this table:\n%s", want)
		}
		for name, f := range families {
			if known[name] = true; f.GetType() == dto.MetricType_HISTOGRAM {
				known[name+"_bucket"] = true
			}
		}
	}
	if len(known) < 30 {
		t.Errorf("only %d metrics", len(known))
	}
	for _, name := range regexp.MustCompile(`spillway_(host|guest)_[a-z_]*[a-z]`).FindAllString(page, -1) {
		if !known[name] {
			t.Errorf("docs/operate.md names %s, which there is not", name)
		}
	}

	source := productSource(t)
	_, logs, _ := strings.Cut(page, "## Log lines that matter")
	logs, _, _ = strings.Cut(logs, "\n## ")
	lines := regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(logs, -1)
	for _, l := range lines {
		if !strings.Contains(source, `"`+l[1]+`"`) {
			t.Errorf("docs/operate.md explains the log line %q, which is not logged", l[1])
		}
	}
	if len(lines) < 10 {
		t.Errorf("only %d log lines", len(lines))
	}
}

// productSource is the text of all Go files that are not tests.
func productSource(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range []string{"../../internal", "."} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			b.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}
