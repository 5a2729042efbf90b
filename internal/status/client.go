package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"syscall"
	"time"
)

// answerTimeout is how long the daemon may take for an answer, which is made of counters: below a second, whatever it does.
const answerTimeout = 5 * time.Second

// client asks the daemon at an admin socket.
type client struct {
	socket string
	http   http.Client
}

func newClient(socket string) *client {
	return &client{socket: socket, http: http.Client{
		Timeout: answerTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true, // a daemon that stops need not wait for us
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
		},
	}}
}

// get requests a page.
func (c *client) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://host"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%s: the daemon that runs there does not know %s: it is older than this program; restart it", c.socket, path)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: GET %s: %s", c.socket, path, resp.Status)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, c.explain(err)
	}
	return body, nil
}

// explain says what to do about an error. It keeps the cause.
func (c *client) explain(err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no daemon: there is no socket %s; start it (spillway host, systemctl start spillway-host), "+
			"or give the admin socket of its configuration with --admin: %w", c.socket, cause(err))
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no daemon: nobody listens at %s any more; start it (spillway host, systemctl start spillway-host): %w", c.socket, cause(err))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s is %s: ask as that user, for instance with sudo: %w", c.socket, ownerOf(c.socket), cause(err))
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%s: the daemon does not answer within %v; is it stopped (SIGSTOP), or the machine overloaded?: %w", c.socket, answerTimeout, cause(err))
	}
	return fmt.Errorf("%s: what answers there is not the admin socket of spillway host: %w", c.socket, cause(err))
}

// cause is what the system says, without the words of net and http around it.
func cause(err error) error {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return number
	}
	return err
}

// ownerOf says whose a file is.
func ownerOf(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "in a directory of another user" // which we may not look into
	}
	uid := strconv.FormatUint(uint64(info.Sys().(*syscall.Stat_t).Uid), 10)
	if u, err := user.LookupId(uid); err == nil {
		return "of user " + u.Username
	}
	return "of user id " + uid
}
