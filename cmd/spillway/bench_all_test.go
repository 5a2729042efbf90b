package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	for _, file := range []string{"micro-unshaped", "micro-1gbit", "dash-unshaped", "dash-1gbit", "dash-40ms", "concurrency-unshaped", "cpu", "handover", "handover-netns"} {
		if !seen["qemu"+file+".json"] {
			t.Errorf("there is no %s", file)
		}
	}
	if scaled(200, 0.001) != "1" || scaled(200, 0.1) != "20" {
		t.Error("the numbers of requests")
	}
}

// TestRunSteps: one bench fails, one has refused figures, one is good; the report has the latter two, and the error names the former two.
func TestRunSteps(t *testing.T) {
	dir := t.TempDir()
	fake := func(name string, result error) step {
		return step{name, func() *cobra.Command {
			var file string
			c := &cobra.Command{Use: name, RunE: func(*cobra.Command, []string) error {
				r := bench.NewReport("micro", bench.Env{Accelerator: "none", Link: name})
				r.Rows = append(r.Rows, bench.Row{Arm: "vm", Case: "4 KB", CaseBytes: 4096, N: 1, Bytes: 4096, ElapsedS: 1, MBPerS: 1, MedianUs: 1})
				return errors.Join(r.WriteFile(file), result)
			}}
			c.Flags().StringVar(&file, "json", "", "")
			return c
		}, nil}
	}
	refused := fmt.Errorf("4 KB: %w", errors.Join(&evaluation.BottleneckError{Arm: "vm", Case: "4 KB"}))
	cmd := &cobra.Command{}
	var out strings.Builder
	cmd.SetOut(&out)
	cmd.SetContext(t.Context())
	err := runSteps(cmd, []step{fake("bad.json", errors.Join(refused, errors.New("wrong bodies"))), fake("some.json", refused), fake("good.json", nil)}, dir)
	if err == nil || !strings.Contains(err.Error(), "bad.json") || !strings.Contains(err.Error(), "some.json") || strings.Contains(err.Error(), "good.json") {
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
