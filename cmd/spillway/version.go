package main

import (
	"fmt"
	"runtime/debug"
)

// version names the commit that the binary was built from, as the go command has stamped it, and the Go that built it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown: the binary was not built as a module"
	}
	return versionOf(info)
}

func versionOf(info *debug.BuildInfo) string {
	stamped := map[string]string{}
	for _, s := range info.Settings {
		stamped[s.Key] = s.Value
	}
	commit := stamped["vcs.revision"]
	switch {
	case commit != "":
		commit = "commit " + commit[:min(12, len(commit))]
		if stamped["vcs.modified"] == "true" {
			commit += ", modified,"
		}
		commit += " of " + stamped["vcs.time"]
	case info.Main.Version != "" && info.Main.Version != "(devel)":
		commit = info.Main.Version
	default: // the go command does not stamp from a git worktree either
		commit = "of an unknown commit (built with -buildvcs=false, or outside of a git clone)"
	}
	return fmt.Sprintf("%s, built with %s for %s/%s", commit, info.GoVersion, stamped["GOOS"], stamped["GOARCH"])
}
