package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/evaluation"
)

// TestSteps: every bench of the evaluation takes its arguments, and has a file of its own.
func TestSteps(t *testing.T) {
	seen := map[string]bool{}
	for _, vm := range []string{"qemu", "netns"} {
		for _, s := range evaluationSteps(vm, "build/cache", 0.1, 6) {
			if seen[vm+s.file] {
				t.Errorf("%s is there twice", s.file)
			}
			seen[vm+s.file] = true
			if err := s.command().ParseFlags(append(s.args, "--json", s.file)); err != nil {
				t.Errorf("%s: %v", s.file, err)
			}
		}
	}
	for _, file := range []string{"micro-unshaped", "micro-1gbit", "dash-unshaped", "dash-1gbit", "dash-40ms", "players", "concurrency", "cpu", "path", "handover", "handover-netns", "cache", "cache-netns", "miss"} {
		if !seen["qemu"+file+".json"] {
			t.Errorf("there is no %s", file)
		}
	}
	if scaled(200, 0.001) != "1" || scaled(200, 0.1) != "20" {
		t.Error("the numbers of requests")
	}
}

// TestRunSteps: one bench fails, one has refused figures, one is good; the report has the latter two, and the error names the former two. Resumed, only what
// failed and what has other flags now is run again.
func TestRunSteps(t *testing.T) {
	dir := t.TempDir()
	var ran []string
	fake := func(name string, result error, args ...string) step {
		return step{name, func() *cobra.Command {
			var file string
			c := &cobra.Command{Use: strings.TrimSuffix(name, ".json")}
			c.RunE = func(*cobra.Command, []string) error {
				ran = append(ran, name)
				r := bench.NewReport("micro", bench.Env{Accelerator: "none", Link: name})
				r.Rows = append(r.Rows, bench.Row{Arm: "vm", Case: "4 KB", CaseBytes: 4096, N: 1, Bytes: 4096, ElapsedS: 1, MBPerS: 1, MedianUs: 1})
				r.Command = commandLine(c)
				return errors.Join(r.WriteFile(file), result)
			}
			c.Flags().StringVar(&file, "json", "", "")
			c.Flags().Float64("scale", 1, "")
			return c
		}, args}
	}
	refused := fmt.Errorf("4 KB: %w", errors.Join(&evaluation.BottleneckError{Arm: "vm", Case: "4 KB"}))
	cmd := &cobra.Command{}
	var out strings.Builder
	cmd.SetOut(&out)
	cmd.SetContext(t.Context())
	check := func(err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "bad.json") || strings.Contains(err.Error(), "good.json") {
			t.Errorf("the error is %v", err)
		}
		text, readErr := os.ReadFile(filepath.Join(dir, "evaluation.md"))
		if readErr != nil {
			t.Fatal(readErr)
		}
		if s := string(text); strings.Contains(s, "bad.json") || !strings.Contains(s, "some.json") || !strings.Contains(s, "good.json") {
			t.Errorf("the report is\n%s", s)
		}
	}
	bad := fake("bad.json", errors.Join(refused, errors.New("wrong bodies")))
	some, good := fake("some.json", refused, "--scale", "0.5"), fake("good.json", nil)
	err := runSteps(cmd, []step{bad, some, good}, dir, true)
	check(err)
	if !strings.Contains(err.Error(), "some.json") {
		t.Errorf("the error is %v", err)
	}
	if d := cmp.Diff([]string{"bad.json", "some.json", "good.json"}, ran); d != "" {
		t.Error(d)
	}
	ran = nil
	check(runSteps(cmd, []step{bad, fake("some.json", refused, "--scale", "1"), good}, dir, true))
	if d := cmp.Diff([]string{"bad.json", "some.json"}, ran); d != "" {
		t.Errorf("resumed: %s", d)
	}
	ran = nil
	check(runSteps(cmd, []step{bad, some, good}, dir, false))
	if len(ran) != 3 {
		t.Errorf("not resumed, and only %v ran", ran)
	}
}

// TestCommandLine: what a report says that it was measured with can be typed, and does not depend on where files are.
func TestCommandLine(t *testing.T) {
	c := benchDashCommand()
	if err := c.ParseFlags([]string{"--vm", "qemu", "--arms=vm,lease", "--json", "x.json", "--cache", "/c", "--link", "40ms,1gbit", "--only-players",
		"--guest", "vm=http://a/", "--guest", "lease=http://b/,admin=http://c", "--env", "link=1gbit"}); err != nil {
		t.Fatal(err)
	}
	const want = "spillway bench dash --arms vm,lease --env link=1gbit --guest vm=http://a/ --guest lease=http://b/,admin=http://c --link 40ms,1gbit --only-players=true --vm qemu"
	if got := commandLine(c); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}
