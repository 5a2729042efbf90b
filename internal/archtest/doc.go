// Package archtest holds the architecture as tests: which package may import which, who may call the kernel, and what every package owes
// its reader. docs/architecture.md tells the same in words.
//
// It contains no code. A test that fails names the rule; the tables at its top are where an exception goes, with its reason.
package archtest
