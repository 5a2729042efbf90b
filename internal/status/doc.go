// Package status shows a person what the host daemon tells at its admin socket: it is `spillway status`. It asks (GET /status, GET /leases),
// works out rates from two answers, and draws. It knows nothing that the daemon does not say, and changes nothing there.
//
// It must not be used by the daemons. What scripts need is the JSON itself, which is passed on as it is.
package status
