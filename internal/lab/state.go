package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// stateFile holds a lab's state in its directory.
const stateFile = "lab.json"

// state is what another process needs to know of a lab.
type state struct {
	Name      string         `json:"name"`
	VM        Kind           `json:"vm"`
	Owner     *owner         `json:"owner,omitempty"` // absent: the lab is up and meant to outlive the process that made it
	Processes map[string]int `json:"processes"`       // name to pid
	Binary    string         `json:"binary"`          // what these pids run
}

// owner is the process that a lab belongs to.
type owner struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"` // when it started, since the boot: a process that has the pid later is another one
}

// thisProcess as the owner of a lab.
func thisProcess() (*owner, error) {
	p, err := readProcess(os.Getpid())
	if err != nil {
		return nil, err
	}
	return &owner{PID: os.Getpid(), StartTicks: p.startTicks}, nil
}

// alive tells whether the owner still runs.
func (o owner) alive() bool {
	p, err := readProcess(o.PID)
	return err == nil && !p.dead && p.startTicks == o.StartTicks
}

// procStat is what /proc tells of a process.
type procStat struct {
	dead       bool // and not yet collected by its parent
	parent     int
	startTicks uint64
}

// readProcess reads /proc/PID/stat. An error means that there is no such process.
func readProcess(pid int) (p procStat, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return p, err
	}
	// proc_pid_stat(5): the command's name, in parentheses, may hold anything; behind it are the fields from 3 on.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	const state, parent, startTime = 0, 1, 19 // fields 3, 4 and 22
	if len(fields) <= startTime {
		return p, fmt.Errorf("/proc/%d/stat has only %d fields", pid, len(fields))
	}
	p.dead = fields[state] == "Z" || fields[state] == "X"
	if p.parent, err = strconv.Atoi(fields[parent]); err != nil {
		return p, err
	}
	p.startTicks, err = strconv.ParseUint(fields[startTime], 10, 64)
	return p, err
}

// saveState writes what Down and sweep need to know. The file is always whole.
func (l *Lab) saveState() error {
	s := state{Name: l.Name, VM: l.VM, Owner: l.owner, Binary: l.Binary, Processes: map[string]int{}}
	for name, p := range l.daemons {
		s.Processes[name] = p.pid
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(l.Dir, stateFile)
	if err := os.WriteFile(file+".next", append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".next", file)
}

// readState reads the state of the lab in dir.
func readState(dir string) (state, error) {
	var s state
	file := filepath.Join(dir, stateFile)
	text, err := os.ReadFile(file)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}
