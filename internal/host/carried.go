package host

import (
	"fmt"

	"spillway/internal/session"
	"spillway/internal/wire"
)

// carryVersion is that of Carried. Hosts of different versions move a VM by recalling its leases.
const carryVersion = 1

// Carried is what a host hands to another one of a VM that moves: its sessions, and their leases. docs/migration.md tells what becomes of it. It comes from another
// daemon and is checked like what a guest says.
type Carried struct {
	Version  int              `json:"version"`
	Sessions []CarriedSession `json:"sessions"`
}

// CarriedSession is one session between two hosts.
type CarriedSession struct {
	Channel   int            `json:"channel"` // which of the VM's, from 0
	ID        uint32         `json:"id"`
	Window    uint32         `json:"window"`     // as HELLO has told them
	MaxLeases uint32         `json:"max_leases"` //
	Input     []byte         `json:"input"`      // the beginning of a frame of the guest's
	Output    []byte         `json:"output"`     // frames for the guest that have not left
	Leases    []CarriedLease `json:"leases"`
}

// CarriedLease is one lease between two hosts.
type CarriedLease struct {
	ID       uint32        `json:"id"`
	State    []byte        `json:"state"`    // as the payload of HANDOVER
	Late     []byte        `json:"late"`     // the client has said this, and nobody has read it
	Finished bool          `json:"finished"` // behind it the client has closed its direction
	EOF      bool          `json:"eof"`      // and the guest knows
	Todo     []CarriedItem `json:"todo"`
	Allowed  int           `json:"allowed"` // DATA bytes that the guest may still send
	Taken    uint64        `json:"taken"`   // that it has sent
	Eaten    int           `json:"eaten"`   // that no CREDIT was sent for
	Credit   int64         `json:"credit"`  // DATA bytes that the guest takes
	Sending  bool          `json:"sending"`
	Ended    bool          `json:"ended"`
	Closing  bool          `json:"closing"`
	Abort    bool          `json:"abort"`
	Over     wire.Reason   `json:"over"`
	Broken   wire.Reason   `json:"broken"`
	Recalled bool          `json:"recalled"` // to come back when it can
	Return   bool          `json:"return"`   // to come back when the client has what it was sent (SEND with RETURN)
	Seen     bool          `json:"seen"`     // the client has acknowledged something since HANDOVER
}

// CarriedItem is something that is to be done on a lease.
type CarriedItem struct {
	Kind  wire.Type     `json:"kind"` // DATA, SEND, END, CLOSE
	Again bool          `json:"again"`
	More  bool          `json:"more"`
	Data  []byte        `json:"data"`
	Whole int           `json:"whole"`
	Order *CarriedOrder `json:"order"`
}

// CarriedOrder is what is left of a SEND.
type CarriedOrder struct {
	File   FileInUse `json:"file"`
	Offset int64     `json:"offset"`
	Count  int64     `json:"count"`
	Header []byte    `json:"header"`
	Return bool      `json:"return"`
	Begun  bool      `json:"begun"`
	Sent   int64     `json:"sent"`
}

// Bounds of what another host may hand over.
const (
	maxCarried = 256 << 20 // bytes of JSON
	maxTodo    = 1 << 10   // of a lease
	maxLate    = 64 << 20  // of a lease, bytes: what a receive buffer holds
	maxAgain   = 64 << 20  // of an item, bytes: what a send buffer holds
	maxOutput  = 64 << 20  // of a session, bytes
)

// export tells all of a lease that is aside.
func (l *leaseConn) export() (CarriedLease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st, late, finished, todo, err := l.leave()
	if err != nil {
		return CarriedLease{}, err
	}
	out := CarriedLease{
		ID: l.id, State: wire.Append(nil, 0, 0, 0, wire.Handover{State: st})[wire.HeaderSize:], Late: late, Finished: finished, EOF: l.eof,
		Allowed: l.allowed, Taken: l.taken, Eaten: l.eaten, Credit: l.credit, Sending: l.sending, Ended: l.ended, Closing: l.closing,
		Abort: l.abort, Over: l.over, Broken: l.broken, Recalled: l.recall == recalled || l.recall == recallTried,
		Return: l.recall == recallSoon || l.recall == recallDue, Seen: l.seen || l.socket.sent() > 0,
	}
	for _, it := range todo {
		c := CarriedItem{Kind: it.kind, Again: it.again, More: it.more, Data: it.data, Whole: it.whole}
		if o := it.order; o != nil {
			c.Order = &CarriedOrder{
				File:   FileInUse{o.file.Share, o.file.Path, o.file.Size, o.file.MTime},
				Offset: o.offset, Count: o.count, Header: o.header, Return: o.giveBack, Begun: o.begun, Sent: o.sent,
			}
		}
		out.Todo = append(out.Todo, c)
	}
	return out, nil
}

// item checks and converts.
func (c *CarriedItem) item() (it item, err error) {
	it = item{kind: c.Kind, again: c.Again, more: c.More, data: c.Data, whole: c.Whole}
	switch {
	case c.Kind == wire.TypeSend && c.Order != nil && len(c.Data) == 0:
		o := c.Order
		it.order = &order{
			file:   wire.FileRef{Share: o.File.Share, Path: o.File.Path, Size: o.File.Size, MTime: o.File.MTimeNs},
			offset: o.Offset, count: o.Count, header: o.Header, giveBack: o.Return, begun: o.Begun, sent: o.Sent,
		}
		if !wire.ValidShare(o.File.Share) || !wire.ValidPath(o.File.Path) {
			return it, breach("file %q of share %q", o.File.Path, o.File.Share)
		}
		// What a guest may say of a file and its range, package wire knows.
		send := wire.Send{File: it.order.file, Offset: o.Offset, Count: o.Count, Header: o.Header}
		if _, err := wire.ParseSend(wire.Append(nil, 0, 0, 0, send)[wire.HeaderSize:]); err != nil {
			return it, err
		}
		if o.Sent < 0 || o.Sent > o.Count {
			return it, breach("%d bytes of %d were sent", o.Sent, o.Count)
		}
	case c.Order != nil:
		return it, breach("%v with a file", c.Kind)
	case c.Kind == wire.TypeData && !c.Again:
		if len(c.Data) > window || c.Whole < 0 || c.Whole > window {
			return it, breach("DATA of %d bytes, and a window of %d", max(len(c.Data), c.Whole), window)
		}
	case c.Kind == wire.TypeData && len(c.Data) <= maxAgain:
	case c.Kind == wire.TypeEnd || c.Kind == wire.TypeClose:
	default:
		return it, breach("%v is nothing to be done on a lease", c.Kind)
	}
	return it, nil
}

// lease makes the lease, without a socket and without a session.
func (c *CarriedLease) lease(v *vm) (*leaseConn, error) {
	m, err := wire.ParseHandover(c.State)
	if err != nil {
		return nil, err
	}
	bounded := func(n, limit int64) bool { return n >= 0 && n <= limit }
	switch {
	case !v.addresses[m.State.Local.Addr()]:
		return nil, breach("%v is none of the VM's addresses", m.State.Local)
	case len(c.Todo) > maxTodo || len(c.Late) > maxLate:
		return nil, breach("%d things to do, and %d bytes that were not read", len(c.Todo), len(c.Late))
	case !bounded(int64(c.Allowed), window) || !bounded(int64(c.Eaten), window) || !bounded(c.Credit, window):
		return nil, breach("windows of %d, %d and %d bytes", c.Allowed, c.Eaten, c.Credit)
	}
	l := newLease(v, c.ID, &m.State)
	for i := range c.Todo {
		it, err := c.Todo[i].item()
		if err != nil {
			return nil, err
		}
		l.todo = append(l.todo, it)
	}
	l.socket.from = &arrived{late: c.Late}
	l.allowed, l.taken, l.eaten, l.credit = c.Allowed, c.Taken, c.Eaten, c.Credit
	l.sending, l.ended, l.closing, l.abort = c.Sending, c.Ended, c.Closing, c.Abort
	l.over, l.broken, l.finished, l.eof = c.Over, c.Broken, c.Finished, c.EOF
	switch l.seen = c.Seen; {
	case c.Recalled:
		l.recall = recalled
	case c.Return:
		l.recall = recallSoon
	}
	return l, nil
}

// state is the session's.
func (c *CarriedSession) state() *session.State {
	hello := wire.Hello{Version: wire.Version, Window: c.Window, MaxLeases: c.MaxLeases}
	return &session.State{ID: c.ID, Hello: hello, Input: c.Input, Output: c.Output}
}

// check checks all but the leases.
func (c *CarriedSession) check(channels int) error {
	switch {
	case c.Channel < 0 || c.Channel >= channels:
		return breach("channel %d of %d", c.Channel, channels)
	case c.ID == 0 || c.Window != window:
		return breach("session %08x with a window of %d bytes", c.ID, c.Window)
	case len(c.Input) > session.MaxInput || len(c.Output) > maxOutput:
		return breach("%d and %d bytes under way", len(c.Input), len(c.Output))
	}
	return nil
}

// files are those that are being sent.
func (c *Carried) files() map[wire.FileRef]bool {
	all := map[wire.FileRef]bool{}
	for _, s := range c.Sessions {
		for _, l := range s.Leases {
			for _, it := range l.Todo {
				if o := it.Order; o != nil {
					all[wire.FileRef{Share: o.File.Share, Path: o.File.Path, Size: o.File.Size, MTime: o.File.MTimeNs}] = true
				}
			}
		}
	}
	return all
}

func (c *Carried) String() string {
	n := 0
	for _, s := range c.Sessions {
		n += len(s.Leases)
	}
	return fmt.Sprintf("%d sessions with %d leases", len(c.Sessions), n)
}
