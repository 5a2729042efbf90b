package guest

import (
	"fmt"
	"io"
	"time"

	"spillway/internal/wire"
)

// fileTimeout bounds the wait for an answer to a file request. The session's own liveness is usually faster.
const fileTimeout = 10 * time.Second

// maxRequests bounds the file requests that wait at a time on a channel.
const maxRequests = 256

// fileAnswer is an ATTR or BYTES, copied out of the session's buffer.
type fileAnswer struct {
	reason      wire.Reason
	size, mtime int64
	data        []byte
}

// Stat asks the host for the size (bytes) and modification time (ns since 1970) of a file. Errors match a wire.Reason.
func (a *Agent) Stat(share, path string) (size, mtimeNs int64, err error) {
	answer, err := fileRequest(a, wire.Stat{Share: share, Path: path})
	return answer.size, answer.mtime, err
}

// ReadFileAt reads from a file through the channel, at most wire.MaxRead bytes a call. It is meant for manifests and other small things:
// every byte crosses into the guest. Errors match a wire.Reason; io.EOF stands at the file's end.
func (a *Agent) ReadFileAt(file wire.FileRef, p []byte, off int64) (int, error) {
	if off >= file.Size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), wire.MaxRead, file.Size-off)]
	answer, err := fileRequest(a, wire.Read{File: file, Offset: off, Count: uint32(len(p))})
	if err != nil {
		return 0, err
	}
	n := copy(p, answer.data)
	if n < len(p) {
		return n, wire.ReasonTruncated
	}
	return n, nil
}

// errMoving means that a request may be made again when the VM has arrived.
var errMoving = fmt.Errorf("%w: the VM moves", wire.ReasonSession)

// fileRequest sends m and waits for its answer. While the VM moves, it waits for a host.
func fileRequest[M wire.Message](a *Agent, m M) (fileAnswer, error) {
	until := time.Now().Add(fileTimeout)
	for {
		answer, err := askFor(a, m)
		if err != errMoving || !a.awaitArrival(time.Until(until)) {
			return answer, err
		}
	}
}

// moving tells whether the VM is on its way between two hosts.
func (a *Agent) moving() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.arrival != nil
}

// awaitArrival waits until there is a session again. It returns false when that takes too long.
func (a *Agent) awaitArrival(limit time.Duration) bool {
	a.mu.Lock()
	arrival := a.arrival
	a.mu.Unlock()
	if arrival == nil {
		return limit > 0
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-arrival:
		return true
	case <-timer.C:
		return false
	}
}

// askFor is one try of fileRequest.
func askFor[M wire.Message](a *Agent, m M) (fileAnswer, error) {
	wait := make(chan fileAnswer, 1)
	a.mu.Lock()
	var l *link
	for _, other := range a.links {
		if other.moving { // its time is for the leases that come back: the sooner they are all here, the shorter everybody waits
			continue
		}
		if l == nil || len(other.requests) < len(l.requests) {
			l = other
		}
	}
	if l == nil || len(l.requests) >= maxRequests {
		moving := a.arrival != nil
		a.mu.Unlock()
		switch {
		case l == nil && moving:
			return fileAnswer{}, errMoving
		case l == nil:
			return fileAnswer{}, wire.ReasonHostAway
		}
		return fileAnswer{}, wire.ReasonLimit
	}
	id := a.nextID(func(id uint32) bool { return l.requests[id] != nil })
	l.requests[id] = wait
	a.mu.Unlock()

	if err := l.session.Write(wire.Append(nil, l.session.ID, id, 0, m)); err != nil {
		return fileAnswer{}, l.gone(wire.ReasonHostAway)
	}
	timer := time.NewTimer(fileTimeout)
	defer timer.Stop()
	select {
	case answer, ok := <-wait:
		switch {
		case !ok:
			return fileAnswer{}, l.gone(wire.ReasonSession)
		case answer.reason != wire.ReasonOK:
			return fileAnswer{}, answer.reason
		}
		return answer, nil
	case <-timer.C:
		a.mu.Lock()
		if l.requests[id] == wait {
			delete(l.requests, id)
		}
		a.mu.Unlock()
		return fileAnswer{}, fmt.Errorf("%w: no answer within %v", wire.ReasonHostAway, fileTimeout)
	}
}

// gone is the error of a request whose session has ended.
func (l *link) gone(reason wire.Reason) error {
	l.agent.mu.Lock()
	defer l.agent.mu.Unlock()
	if l.moving {
		return errMoving
	}
	return reason
}

// OnForget calls f for each file of a share of which the host says that it was replaced or is gone. f must not wait for the agent. It may come late, or not at
// all: who keeps attributes asks again after a while nevertheless.
func (a *Agent) OnForget(share string, f func(path string)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.keepers == nil {
		a.keepers = map[string][]func(string){}
	}
	a.keepers[share] = append(a.keepers[share], f)
}

// forgetFile tells those that OnForget has named.
func (a *Agent) forgetFile(share, path string) {
	a.mu.Lock()
	keepers := a.keepers[share] // only ever appended to
	a.mu.Unlock()
	for _, f := range keepers {
		f(path)
	}
}

// forget is the event of FORGET.
func (a *Agent) forget(payload []byte) error {
	m, err := wire.ParseForget(payload)
	if err != nil {
		return err
	}
	a.forgetFile(m.Share, m.Path)
	return nil
}

// answer is the event of ATTR and BYTES.
func (l *link) answer(head wire.Header, payload []byte) error {
	var answer fileAnswer
	if head.Type == wire.TypeAttr {
		m, err := wire.ParseAttr(payload)
		if err != nil {
			return err
		}
		answer = fileAnswer{reason: m.Reason, size: m.Size, mtime: m.MTime}
	} else {
		m, err := wire.ParseBytes(payload)
		if err != nil {
			return err
		}
		answer = fileAnswer{reason: m.Reason, data: append([]byte(nil), m.Data...)}
	}
	l.agent.mu.Lock()
	wait := l.requests[head.ID]
	delete(l.requests, head.ID)
	l.agent.mu.Unlock()
	if wait != nil {
		wait <- answer // never waits: one answer a request
	}
	return nil
}
