// Package evaluation runs the benches: it brings a lab up, sends the same requests through each arm in turn, and reports what client, servers and
// daemon saw. Package bench has the client and the statistics, package lab the machines.
//
// All arms of a bench run in one lab, interleaved, after a pass that checks the SHA-256 of every body through every arm; in the timed
// passes the length of each is checked. Each pass begins with a new connection, so that a lease pays for its handover in each.
package evaluation
