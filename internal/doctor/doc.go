// Package doctor checks that a host or a guest has what Spillway needs, and says for each thing that is not right what to
// do about it.
//
// It looks and leaves everything as it was: kernel features are tried in package feature, eBPF programs are loaded by package tcprepair and taken
// away again, the redirect is read by package redirect, everything else is read from /proc, /sys and the paths in [Env]. It stands beside the data
// path, which never calls it. Every check runs, whatever the others find; a check whose file system does not answer is given up after a time.
//
// It needs no privilege, but without CAP_NET_ADMIN several checks can only say that they could not tell. Checks act in the
// network namespace of the calling thread.
//
// # JSON output, schema 1
//
//	{
//	  "schema": 1,              // grows when a field changes its meaning or goes; new fields do not count
//	  "role":   "host",         // or "guest"
//	  "kernel": "6.1.0-18-amd64",
//	  "ok":     true,           // no check has the status "fail"
//	  "checks": [
//	    {
//	      "name":   "ip-forward",  // kebab-case, stable
//	      "status": "fail",        // "ok", "warn", "fail" or "skip"
//	      "detail": "…",           // what was found, one line
//	      "hint":   "…"            // what to do, with the command; absent when there is nothing to do
//	    }
//	  ]
//	}
package doctor
