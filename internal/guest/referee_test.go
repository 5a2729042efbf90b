package guest

import (
	"fmt"

	"spillway/internal/wire"
)

// referee holds what a guest says against the rules of docs/wire.md, as the host daemon does: one breach ends the session there, with all leases
// of the VM. It does not check order where frames may cross.
type referee map[uint32]*ruled

// ruled is one lease as the referee sees it.
type ruled struct {
	allowed   int  // DATA bytes that the guest may send
	uncounted int  // DATA bytes of the host that no CREDIT was given for
	sending   bool // a SEND is under way
	ended     bool // END or CLOSE
	closing   bool // CLOSE
	awaiting  bool // HANDBACK is unanswered
}

// hostSays notes what the host is about to say.
func (r referee) hostSays(id uint32, m wire.Message) {
	l := r[id]
	if l == nil {
		return
	}
	switch m := m.(type) {
	case wire.Data:
		l.uncounted += len(m.Data)
	case wire.Credit:
		l.allowed += int(m.Bytes)
	case wire.Sent:
		l.sending = false
	case wire.Handback:
		l.awaiting = true
	case wire.Refused, wire.Closed, wire.Released:
		delete(r, id)
	}
}

// guestSays returns the breach that a frame is.
func (r referee) guestSays(head wire.Header, m wire.Message) error {
	if m, ok := m.(wire.Handover); ok {
		if r[head.ID] != nil {
			return fmt.Errorf("HANDOVER of lease %d, which lives", head.ID)
		}
		if !m.State.Local.IsValid() {
			return fmt.Errorf("HANDOVER without an address")
		}
		r[head.ID] = &ruled{allowed: testWindow}
		return nil
	}
	l := r[head.ID]
	if l == nil {
		return nil // it crossed with the end
	}
	if err := l.frame(head, m); err != nil {
		return fmt.Errorf("lease %d: %w", head.ID, err)
	}
	return nil
}

func (l *ruled) frame(head wire.Header, m wire.Message) error {
	switch m := m.(type) {
	case wire.Data:
		if l.allowed -= len(m.Data); l.allowed < 0 || l.ended {
			return fmt.Errorf("DATA after END or CLOSE (%v), or %d bytes more than the window", l.ended, -l.allowed)
		}
	case wire.Credit:
		if l.uncounted -= int(m.Bytes); l.uncounted < 0 {
			return fmt.Errorf("CREDIT for %d bytes that were never sent", -l.uncounted)
		}
	case wire.Send:
		if l.sending || l.ended {
			return fmt.Errorf("SEND while another one is under way (%v) or after END or CLOSE (%v)", l.sending, l.ended)
		}
		l.sending = true
	case wire.End:
		if l.ended {
			return fmt.Errorf("END after END or CLOSE")
		}
		l.ended = true
	case wire.Close:
		if l.closing && head.Flags&wire.FlagAbort == 0 {
			return fmt.Errorf("CLOSE after CLOSE")
		}
		l.ended = true
		l.closing = l.closing || head.Flags&wire.FlagAbort == 0
	case wire.Taken, wire.Keep:
		if !l.awaiting {
			return fmt.Errorf("%v without HANDBACK", m.Type())
		}
		l.awaiting = false
	}
	return nil
}
