package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"spillway/internal/config"
	"spillway/internal/delayline"
	"spillway/internal/lab"
)

// delaylineCommand is the process that carries the packets of a lab's link with delay. It inherits the devices from `lab up` or a bench; they go
// with it.
func delaylineCommand() *cobra.Command {
	var link lab.Link
	var admin string
	cmd := &cobra.Command{
		Use:    "delayline",
		Short:  "Be the link with delay of a lab",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return runDelayLine(cmd.Context(), link, admin) },
	}
	cmd.Flags().Var(&link, "link", "what the link is like, as for lab up")
	cmd.Flags().StringVar(&admin, "admin", "", "unix socket for the counters")
	return cmd
}

func runDelayLine(ctx context.Context, link lab.Link, admin string) error {
	runtime.GOMAXPROCS(4) // one for each direction, which must never wait for it, and some for the rest
	cfg, ok := link.DelayLine()
	if !ok {
		return errors.New("--link: no delay line is needed for this link")
	}
	path, err := delayline.New(cfg, os.NewFile(lab.ClientDeviceFD, "client's device"), os.NewFile(lab.HostDeviceFD, "host's device"))
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", admin)
	if err != nil {
		return errors.Join(err, path.Close())
	}
	stats := func() lab.LinkStats {
		toHost, toClient := path.Counters()
		return lab.LinkStats{Link: link.String(), ToHost: toHost, ToClient: toClient}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(stats()) // the client is gone, and there is nobody to tell
	})
	server := &http.Server{Handler: mux}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // it was closed
	}()
	log := newLogger(config.DefaultServe().LogLevel)
	log.Info("the link is up", "link", link.String())
	err = path.Run(ctx)
	_ = server.Close() // and removes the socket's file
	<-served
	s := stats()
	log.Info("the link has ended", "to_host", s.ToHost, "to_client", s.ToClient)
	return err
}
