package host

import "time"

// recallState of a lease that is to be given back when it is idle.
type recallState uint8

const (
	notRecalled recallState = iota
	recallSoon              // after a SEND with RETURN: when the client speaks again, or has said nothing for recallPause
	recallDue               // now; if the handback is called off, the next SEND with RETURN asks again
	recalled                // to be tried when nothing is left to do
	recallTried             // the handback was called off: to be tried again after the next item
)

// recallPause is how long a lease in mode offload waits for the client's next request. Given back together with it, the connection changes hands
// while the client waits for an answer and says nothing, and with the acknowledgement that a receiver may delay (RFC 1122, 4.2.3.2).
const recallPause = 20 * time.Millisecond

// ear is what the receiver does with what the client says.
type ear uint8

const (
	relays    ear = iota // passes it on
	announces            // tells the sender that there is something, and leaves it where it is
	rests                // nothing: the socket is in repair mode, where a read fails
)

// callBack asks for the connection to be given back as soon as it can be: idle, or in the middle of a file.
func (l *leaseConn) callBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recall = recalled
	if l.recalledAt.IsZero() {
		l.recalledAt = time.Now()
	}
	if l.inFile && l.live {
		l.socket.interruptWrite()
	}
	if l.stopWait != nil {
		l.stopWait()
	}
	l.work.Signal()
}

// recallAgain makes a recall due again whose handback was called off.
func (l *leaseConn) recallAgain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.recall == recallTried {
		l.recall = recalled
	}
}

// wanted tells whether the connection is to be given back.
func (l *leaseConn) wanted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recall == recalled
}

// callBackSoon is callBack when the client has spoken, or been silent for a while. The receiver must be running.
func (l *leaseConn) callBackSoon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.recall >= recallDue {
		return
	}
	l.recall, l.ear = recallSoon, announces
	if l.pause == nil {
		l.pause = time.AfterFunc(recallPause, l.paused)
	} else {
		l.pause.Reset(recallPause)
	}
}

// paused is called when the client has said nothing for recallPause. As long as it still reads, it is not idle.
func (l *leaseConn) paused() {
	outstanding, err := l.socket.outstanding()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.recall != recallSoon:
	case err == nil && outstanding > 0:
		l.pause.Reset(recallPause)
	default:
		l.recall = recallDue
		l.work.Signal()
	}
}

// spoken is what the receiver announces.
func (l *leaseConn) spoken() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.recall == recallSoon {
		l.recall = recallDue
		l.work.Signal()
	}
	if l.ear == announces {
		l.ear = rests
	}
}

// hear says what the receiver is to do from now on.
func (l *leaseConn) hear(e ear) {
	l.mu.Lock()
	l.ear = e
	l.mu.Unlock()
	l.room.Signal()
}
