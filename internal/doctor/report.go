package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Schema is the version of the JSON output: see the package's documentation.
const Schema = 1

// Report is what all checks found.
type Report struct {
	Schema  int       `json:"schema"`
	Role    Role      `json:"role"`
	Kernel  string    `json:"kernel"`
	Healthy bool      `json:"ok"` // as OK() says
	Checks  []Finding `json:"checks"`
}

// Finding is the result of one check under its name.
type Finding struct {
	Name string `json:"name"`
	Result
}

// OK reports whether no check failed: a command exits with 0 exactly then.
func (r Report) OK() bool { return r.count(Fail) == 0 }

func (r Report) count(s Status) (n int) {
	for _, f := range r.Checks {
		if f.Status == s {
			n++
		}
	}
	return n
}

// WriteJSON writes the report in the documented schema.
func (r Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false) // hints hold shell commands
	return enc.Encode(r)
}

// WriteText writes the report as a table for people: one line a check, the hint beneath it.
func (r Report) WriteText(w io.Writer) error {
	width := 0
	for _, f := range r.Checks {
		width = max(width, len(f.Name))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "spillway doctor: %s, Linux %s\n", r.Role, r.Kernel)
	for _, f := range r.Checks {
		label := string(f.Status)
		if f.Status == Fail || f.Status == Warn {
			label = strings.ToUpper(label) // findable without colour
		}
		fmt.Fprintf(&b, "  %-4s  %-*s  %s\n", label, width, f.Name, f.Detail)
		if f.Hint != "" {
			fmt.Fprintf(&b, "  %-4s  %-*s  -> %s\n", "", width, "", f.Hint)
		}
	}
	fmt.Fprintf(&b, "%d ok, %d warn, %d fail, %d skip\n", r.count(OK), r.count(Warn), r.count(Fail), r.count(Skip))
	_, err := io.WriteString(w, b.String())
	return err
}
