package redirect

import (
	"errors"
	"fmt"
)

// ErrInUse says that a living process holds the redirect of this network namespace. Stop it, or give this one another
// table, mark and route table.
var ErrInUse = errors.New("another process owns the redirect in this network namespace: " +
	"stop it, or set another table, mark and route_table in [redirect]")

// ErrRemoved says that the redirect was removed.
var ErrRemoved = errors.New("the redirect was removed")

// An Error is a failed operation on the redirect.
type Error struct {
	Op   string // what was done: "install", "remove", "remove stale", "check"
	Step string // the kernel object that it failed on, in the words of ip(8) or nft(8)
	Left string // what is still installed after the failure; empty when nothing is
	Err  error  // the cause, usually a unix.Errno
}

func (e *Error) Error() string {
	s := fmt.Sprintf("redirect: %s: %s: %v", e.Op, e.Step, e.Err)
	if e.Left != "" {
		s += "; left behind: " + e.Left
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// A CollisionError says that a name or number of ours is used by somebody else on this machine. Nothing was changed.
type CollisionError struct {
	Option string // key of the [redirect] section to change: "table", "mark" or "route_table"
	Value  string // its present value
	Found  string // what uses it, in the words of ip(8) or nft(8)
}

func (e *CollisionError) Error() string {
	return fmt.Sprintf("redirect: %s %s is already used by `%s`: set another %s in [redirect]", e.Option, e.Value, e.Found, e.Option)
}
