// Package bench measures: a client that asks for files over one keep-alive connection, a recorder of what it saw, the one JSON schema
// that every bench of this project writes, and the table that people read.
//
// It stands at the far end of the data path, where the player is. It knows nothing of offloading: it measures every arm through the
// same bytes on the same kind of connection. Daemons must not import it, and it must not be used as an HTTP client in general: it
// understands what a media server answers to a GET, and takes everything else for an error.
//
// It needs no capability. The caller's dial function decides from which network namespace a client speaks.
package bench
