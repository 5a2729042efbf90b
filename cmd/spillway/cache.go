package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/status"
)

// cacheFlags are those of every command about a cache.
type cacheFlags struct {
	socket, share string
	json          bool
}

func cacheCommand() *cobra.Command {
	var f cacheFlags
	cmd := groupCommand(&cobra.Command{
		Use:   "cache",
		Short: "Look after the caches of the host daemon: list, warm, pin, evict, verify",
		Long: `Look after a cache of the host daemon of this machine, through its admin socket. docs/cache.md tells how a cache works.

  spillway cache ls --share vod films/            what is cached of the files whose paths begin so
  spillway cache warm --share vod films/a.mp4     fetch all of it now
  spillway cache verify --share vod               compare all checksums`,
	}, f.ls(), f.stat(), f.order("pin", "Keep files from being evicted", false), f.order("unpin", "Let files be evicted again", false),
		f.order("evict", "Remove files from the cache", true), f.work("warm", "Fetch files into the cache", "path", cobra.MinimumNArgs(1)),
		f.work("verify", "Compare the checksums of what is cached; what is damaged is removed, to be fetched again", "prefix", cobra.MaximumNArgs(1)))
	p := cmd.PersistentFlags()
	p.StringVar(&f.socket, "admin", "", fmt.Sprintf("the daemon's admin socket; default: what %s says", defaultHostConfig))
	p.StringVar(&f.share, "share", "", "the share's name")
	p.BoolVar(&f.json, "json", false, "print JSON")
	_ = cmd.MarkPersistentFlagRequired("share") // it exists
	return cmd
}

// admin is the socket to ask.
func (f *cacheFlags) admin() (string, error) {
	if f.socket == "" {
		f.socket = configuredAdmin(defaultHostConfig)
	}
	if f.socket == "" {
		return "", errors.New("the daemon has no admin socket: set admin in its configuration, or give it with --admin")
	}
	return f.socket, nil
}

func (f *cacheFlags) ls() *cobra.Command {
	var max int
	cmd := &cobra.Command{Use: "ls [PREFIX]", Short: "List what is cached", Args: cobra.MaximumNArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		socket, err := f.admin()
		if err != nil {
			return err
		}
		prefix := append(args, "")[0]
		out, err := status.Cache(cmd.Context(), socket, f.share, prefix, max)
		if err != nil {
			return err
		}
		if f.json {
			return printJSON(cmd.OutOrStdout(), out)
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "CACHED\tOF\tPINNED\tUSERS\tPATH")
		for _, s := range out.Files {
			fmt.Fprintf(t, "%s\t%s\t%t\t%d\t%q\n", humanize.Bytes(uint64(s.CachedBytes)), humanize.Bytes(uint64(s.Bytes)), s.Pinned, s.Users, s.Path)
		}
		if out.LeftOut > 0 {
			fmt.Fprintf(t, "and %d more; see --max\n", out.LeftOut)
		}
		return t.Flush()
	}}
	cmd.Flags().IntVar(&max, "max", 1000, "files to list at most")
	return cmd
}

func (f *cacheFlags) stat() *cobra.Command {
	return &cobra.Command{Use: "stat PATH", Short: "Show all that is known of one file", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		socket, err := f.admin()
		if err != nil {
			return err
		}
		out, err := status.Cache(cmd.Context(), socket, f.share, args[0], 1)
		if err != nil {
			return err
		}
		if len(out.Files) == 0 || out.Files[0].Path != args[0] {
			return fmt.Errorf("%q is not in the cache of share %q", args[0], f.share)
		}
		return printJSON(cmd.OutOrStdout(), out.Files[0])
	}}
}

func (f *cacheFlags) order(name, short string, byPrefix bool) *cobra.Command {
	var prefix bool
	cmd := &cobra.Command{Use: name + " PATH...", Short: short, Args: cobra.MinimumNArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		socket, err := f.admin()
		if err != nil {
			return err
		}
		for _, path := range args {
			key := "path"
			if prefix {
				key = "prefix"
			}
			out, err := status.CacheOrder(cmd.Context(), socket, name, url.Values{"share": {f.share}, key: {path}})
			if err == nil {
				err = printJSON(cmd.OutOrStdout(), out)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}}
	if byPrefix {
		cmd.Flags().BoolVar(&prefix, "prefix", false, "all files whose paths begin so")
	}
	return cmd
}

func (f *cacheFlags) work(name, short, key string, args cobra.PositionalArgs) *cobra.Command {
	use := name + " PATH..."
	if key == "prefix" {
		use = name + " [PREFIX]"
	}
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		socket, err := f.admin()
		if err != nil {
			return err
		}
		if len(args) == 0 {
			args = []string{""}
		}
		progress := bench.NewProgress(cmd.ErrOrStderr())
		for _, path := range args {
			progress.Step("%s %s %s", name, f.share, path)
			out, err := status.CacheWork(cmd.Context(), socket, name, url.Values{"share": {f.share}, key: {path}}, func(done, total int64) {
				progress.Update("%s of %s", humanize.Bytes(uint64(done)), humanize.Bytes(uint64(total)))
			})
			if err == nil {
				progress.Done("done")
				err = printJSON(cmd.OutOrStdout(), out)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}}
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
