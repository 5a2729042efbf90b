package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"spillway/internal/channel"
	"spillway/internal/config"
	"spillway/internal/guest"
	"spillway/internal/media"
	"spillway/internal/mediafs"
)

func serveCommand() *cobra.Command {
	var file string
	var shares []string
	flags := config.DefaultServe()
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the media server, in a VM or on bare metal",
		Long: `Run the media server for DASH, HLS and other files over HTTP/1.1. In a VM it hands large responses to the host daemon; without a host it serves
them itself. In modes lease and offload it needs root.

  spillway serve --listen :80 --share media:/media/:/mnt/media          in a VM
  spillway serve --mode off --share media:/media/:/srv/media            on bare metal`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := serveConfig(cmd, file, shares, flags)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cfg, newLogger(cfg.LogLevel))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration file (see examples/serve.toml); flags override it")
	f.StringSliceVar(&flags.Listen, "listen", flags.Listen, "addresses to serve clients at")
	f.StringVar(&flags.Admin, "admin", flags.Admin, "address for counters (GET /stats, /metrics), empty for none")
	f.Var(&flags.Offload.Mode, "mode", "lease, offload (hand back after each response) or off")
	f.StringArrayVar(&flags.Offload.Channels, "channel", flags.Offload.Channels, "virtio:PORT, unix:PATH or vsock:CID:PORT; more than once for several")
	f.Var(&flags.Offload.Threshold, "threshold", "smallest response that a connection is handed over for; auto: find out")
	f.Var(&flags.Offload.BusyPoll, "busy-poll", "how long to ask the channel for what is expected before sleeping; 0s: off")
	f.Var(&flags.LogLevel, "log-level", "debug, info, warn or error")
	f.StringArrayVar(&shares, "share", nil, "NAME:/URL/PREFIX/:DIRECTORY; without a directory files are read through the channel; may be repeated")
	return cmd
}

// serveConfig reads the file and lets the flags that were given override it.
func serveConfig(cmd *cobra.Command, file string, shares []string, flags config.Serve) (config.Serve, error) {
	cfg := config.DefaultServe()
	if file != "" {
		var err error
		if cfg, err = config.LoadServe(file); err != nil {
			return cfg, err
		}
	}
	for name, set := range map[string]func(){
		"listen":    func() { cfg.Listen = flags.Listen },
		"admin":     func() { cfg.Admin = flags.Admin },
		"mode":      func() { cfg.Offload.Mode = flags.Offload.Mode },
		"channel":   func() { cfg.Offload.Channels = flags.Offload.Channels },
		"threshold": func() { cfg.Offload.Threshold = flags.Offload.Threshold },
		"busy-poll": func() { cfg.Offload.BusyPoll = flags.Offload.BusyPoll },
		"log-level": func() { cfg.LogLevel = flags.LogLevel },
	} {
		if cmd.Flags().Changed(name) {
			set()
		}
	}
	if len(shares) > 0 {
		cfg.Shares = nil
		for _, s := range shares {
			name, rest, ok := strings.Cut(s, ":")
			prefix, mount, _ := strings.Cut(rest, ":")
			if !ok {
				return cfg, fmt.Errorf("--share %q: write NAME:/URL/PREFIX/:DIRECTORY, as media:/media/:/mnt/media", s)
			}
			cfg.Shares = append(cfg.Shares, config.ServeShare{Name: name, Prefix: prefix, Mount: mount})
		}
	}
	return cfg, cfg.Validate()
}

// shutdownGrace is how long responses under way may take when the server is told to stop.
const shutdownGrace = 10 * time.Second

// serve runs the media server until ctx is done.
func serve(ctx context.Context, cfg config.Serve, log *slog.Logger) error {
	mode, err := guest.ParseMode(string(cfg.Offload.Mode))
	if err != nil {
		return err
	}
	agent, err := guest.NewAgent(guest.Options{
		Policy:   guest.Policy{Mode: mode, Threshold: int64(cfg.Offload.Threshold)},
		BusyPoll: cfg.Offload.BusyPoll.Value(),
		Logger:   log,
	})
	if err != nil {
		return err
	}
	defer agent.Close()
	mounts, closeMounts, err := openShares(cfg.Shares, agent, mode != guest.Off)
	if err != nil {
		return err
	}
	defer closeMounts()
	handler := media.Handler(nil, media.Options{
		Mounts:         mounts,
		ManifestMaxAge: cfg.HTTP.ManifestMaxAge.Value(),
		SegmentMaxAge:  cfg.HTTP.SegmentMaxAge.Value(),
		Log:            log,
	})
	var served atomic.Uint64
	server := media.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r)
		served.Add(1) // when it has ended: one that is under way needs its memory
	}), log)
	server.ReadHeaderTimeout = cfg.HTTP.ReadHeaderTimeout.Value()
	server.IdleTimeout = cfg.HTTP.IdleTimeout.Value()

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { returnMemory(ctx, served.Load); return nil })
	for _, addr := range cfg.Listen {
		l, err := guest.Listen(ctx, addr, agent)
		if err != nil {
			return errors.Join(err, server.Close())
		}
		log.Info("serving", "address", l.Addr().String(), "mode", mode.String())
		group.Go(func() error { return ignoreClosed(server.Serve(l)) })
	}
	endSession := func() {}
	if mode != guest.Off {
		// The channel outlives ctx until the responses under way have ended.
		channelCtx, stopChannel := context.WithCancel(context.WithoutCancel(ctx))
		defer stopChannel()
		var keeping sync.WaitGroup
		for _, address := range cfg.Offload.Channels {
			a, err := channel.ParseAddress(address)
			if err != nil {
				return errors.Join(err, server.Close())
			}
			keeping.Go(func() { keepChannel(channelCtx, a, agent, log) })
		}
		endSession = func() { stopChannel(); keeping.Wait() }
		defer endSession()
	}
	if cfg.Admin != "" {
		admin := &http.Server{Addr: cfg.Admin, Handler: agent.AdminHandler(), ReadHeaderTimeout: media.ReadHeaderTimeout}
		group.Go(func() error { return ignoreClosed(admin.ListenAndServe()) })
		group.Go(func() error { <-ctx.Done(); return admin.Close() })
	}
	group.Go(func() error {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if err := server.Shutdown(grace); err != nil {
			endSession() // before Close, which would reset what the host is sending: without a session the host sends it to its end
			return server.Close()
		}
		return nil
	})
	return group.Wait()
}

// keepChannel keeps a channel to the host until ctx is done.
func keepChannel(ctx context.Context, a channel.Address, agent *guest.Agent, log *slog.Logger) {
	err := channel.Keep(ctx, a, func(ctx context.Context, conn channel.Conn) error { return agent.Serve(ctx, conn) },
		channel.KeepOptions{Logger: log})
	if ctx.Err() == nil {
		log.Error("a channel cannot be used", "channel", a.String(), "error", err)
	}
}

// mountedTTL is for how long a segment of a mounted share is taken to be what it was: as long as nginx takes an open file for it (open_file_cache_valid).
const mountedTTL = time.Minute

// openShares makes the file systems of the shares. offloads tells whether there is a host to ask.
func openShares(shares []config.ServeShare, agent *guest.Agent, offloads bool) (mounts []media.Mount, closeAll func(), err error) {
	var dirs []*mediafs.Dir
	closeAll = func() {
		for _, d := range dirs {
			d.Close()
		}
	}
	for _, s := range shares {
		var options mediafs.RemoteOptions
		if s.Mount != "" {
			options.MediaTTL = mountedTTL
		}
		remote := mediafs.NewRemote(s.Name, agent, options)
		if offloads {
			agent.OnForget(s.Name, remote.Forget)
		}
		if s.Mount == "" {
			mounts = append(mounts, media.Mount{Prefix: s.Prefix, FS: remote})
			continue
		}
		d, err := mediafs.NewDir(s.Name, s.Mount, mediafs.Options{})
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("share %s: %w; mount it first", s.Name, err)
		}
		dirs = append(dirs, d)
		mount := media.Mount{Prefix: s.Prefix, FS: d}
		if offloads {
			mount.FS = mediafs.NewMounted(remote, d)
		}
		mounts = append(mounts, mount)
	}
	return mounts, closeAll, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
