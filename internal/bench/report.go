package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Schema is the version of the report's JSON. A field may be added under the same version; nothing else may change.
const Schema = 1

// Report is what every bench writes. Its JSON is an interface: docs and plots are made from it.
type Report struct {
	Schema int    `json:"schema"`
	Bench  string `json:"bench"` // "demo", "handover", …
	Env    Env    `json:"env"`
	Rows   []Row  `json:"rows"`

	// Command is what was typed to measure it, without where files are. Empty: not known.
	Command string `json:"command,omitempty"`
}

// Env is where the figures were measured. Unknown is empty or zero.
type Env struct {
	Accelerator string `json:"accelerator"` // "kvm", "tcg", or "none" for a lab without a VM
	Kernel      string `json:"kernel"`      // the host's release
	QEMU        string `json:"qemu"`
	CPUs        int    `json:"cpus"`
	Link        string `json:"link"` // "unshaped", or as --link has it, with the seed of its loss

	// Congestion is the congestion control of all servers towards the client; empty: each kernel's own.
	Congestion string `json:"congestion,omitempty"`
}

// Row is one arm in one case.
type Row struct {
	Arm      string  `json:"arm"`
	Case     string  `json:"case"`      // the data set, the size, …
	N        int     `json:"n"`         // requests with the right body
	Bytes    int64   `json:"bytes"`     // of their bodies
	ElapsedS float64 `json:"elapsed_s"` // on the wall
	MBPerS   float64 `json:"mb_per_s"`  // 10^6 bytes
	MedianUs float64 `json:"median_us"` // of a request
	P99Us    float64 `json:"p99_us"`
	IQRUs    float64 `json:"iqr_us,omitempty"` // between the first and the third quartile

	// The same of the time to the first byte of the response.
	FirstByteUs    float64 `json:"first_byte_us,omitempty"`
	FirstByteP99Us float64 `json:"first_byte_p99_us,omitempty"`
	FirstByteIQRUs float64 `json:"first_byte_iqr_us,omitempty"`

	Wrong     int64  `json:"wrong"`  // wrong bodies and failed requests
	Stalls    int64  `json:"stalls"` // waits of over 150 ms
	Handovers int64  `json:"handovers"`
	Handbacks int64  `json:"handbacks"`
	Fallbacks Counts `json:"fallbacks"` // local serving, by reason

	// Drops are packets that the link with delay has dropped, by cause, in both directions.
	Drops Counts `json:"drops,omitempty"`

	// TCPTimeouts are retransmission timeouts that the kernel counted meanwhile (TcpExtTCPTimeouts), by side: client, host, guest. Those that were none are not there.
	TCPTimeouts Counts `json:"tcp_timeouts,omitempty"`

	// Leases are the connections that the host had, where the row is about them.
	Leases int `json:"leases,omitempty"`

	// Processes are what the programs took, by name: host, server, qemu.
	Processes map[string]Process `json:"processes,omitempty"`

	// Machine is the time of all CPUs, in seconds for each 10^9 bytes, by where it went: user, system, irq, softirq.
	Machine map[string]float64 `json:"machine_cpu_s_per_gb,omitempty"`

	// CaseBytes is the size of each body, where all are of one size; Connections how many asked at the same time, where the row is about that.
	CaseBytes   int64 `json:"case_bytes,omitempty"`
	Connections int   `json:"connections,omitempty"`

	Spread *Spread `json:"spread,omitempty"`

	// ToLease is the bandwidth as a part of that of arm lease: of each round of passes that took turns, so that what drifts on the machine is in both.
	ToLease *Interval `json:"mb_per_s_to_lease,omitempty"`

	// Memory is what the copies of a working set took, where the row is about that.
	Memory *Memory `json:"memory,omitempty"`

	Load *Load `json:"load,omitempty"`

	// Refused says why the row's figures are not to be published.
	Refused string `json:"refused,omitempty"`

	// Playback is what players saw, where the row is about them.
	Playback *Playback `json:"playback,omitempty"`

	// Timeline is how many bytes came in each interval of a download, where the row is about that.
	Timeline *Timeline `json:"timeline,omitempty"`

	// Steps are the parts of a handover or of a request, by name.
	Steps map[string]Step `json:"steps,omitempty"`
}

// Process is what a program took. Unknown is zero.
type Process struct {
	CPUSecondsPerGB float64 `json:"cpu_s_per_gb,omitempty"` // of all its threads, for each 10^9 bytes

	RSSBytes   int64 `json:"rss_bytes,omitempty"`
	PSSBytes   int64 `json:"pss_bytes,omitempty"`   // pages that processes share count in parts
	HeapBytes  int64 `json:"heap_bytes,omitempty"`  // in use, what is garbage by now included
	StackBytes int64 `json:"stack_bytes,omitempty"` // of goroutines

	RSSBytesPerLease int64 `json:"rss_bytes_per_lease,omitempty"` // above what it took before there were leases

	Goroutines int `json:"goroutines,omitempty"`
	Threads    int `json:"threads,omitempty"`
	OpenFiles  int `json:"open_files,omitempty"`  // descriptors, sockets included
	MediaFiles int `json:"media_files,omitempty"` // descriptors of shared files
}

// Step is the cost of a part.
type Step struct {
	MedianUs float64 `json:"median_us"`
	P99Us    float64 `json:"p99_us"`
}

// Counts is a number by reason. Its JSON is an object also when it is nil.
type Counts map[string]int64

// MarshalJSON implements json.Marshaler.
func (c Counts) MarshalJSON() ([]byte, error) {
	if c == nil {
		return []byte("{}"), nil
	}
	return json.Marshal(map[string]int64(c))
}

// RefusedBottleneck is in Row.Refused when the load generator was slower than the server.
const RefusedBottleneck = "load generator"

// Playback is what players saw, all of them and all rounds together.
type Playback struct {
	Players   int     `json:"players"`    // at the same time
	Stalls    int64   `json:"stalls"`     // times that a buffer ran empty
	StalledS  float64 `json:"stalled_s"`  // of the media's clock
	Switches  int64   `json:"switches"`   // from one bit rate to another
	MeanKbit  float64 `json:"mean_kbit"`  // bit rate of what was played, kbit/s
	StartupMs float64 `json:"startup_ms"` // median time to the first segment
}

// Memory is what the copies of a working set took that two guests served, in bytes.
type Memory struct {
	MediaBytes      int64 `json:"media_bytes"`       // of the files, each counted once
	GuestsBytes     int64 `json:"guests_bytes"`      // the guests' memory, together
	GuestCacheBytes int64 `json:"guest_cache_bytes"` // what the guests' page caches have grown by
	HostCacheBytes  int64 `json:"host_cache_bytes"`  // what the host's page cache has of the files

	// Resident memory of both QEMUs, before the first request and at the end.
	QEMUBeforeBytes int64 `json:"qemu_before_bytes"`
	QEMUBytes       int64 `json:"qemu_bytes"`

	// What was read in the timed passes: by both QEMUs, by system calls, and by these and the host daemon from a disk.
	ShareReadBytes int64 `json:"share_read_bytes"`
	DiskReadBytes  int64 `json:"disk_read_bytes"`

	HitRatio float64 `json:"hit_ratio"` // of the bytes served, those that the cache had which they were sent from: the guest's, or the host's for arm lease
}

// PerMedia is how many bytes of page caches there are for each byte of media.
func (m Memory) PerMedia() float64 {
	return float64(m.GuestCacheBytes+m.HostCacheBytes) / float64(max(m.MediaBytes, 1))
}

// Timeline counts the bytes that came in each interval.
type Timeline struct {
	IntervalMs float64 `json:"interval_ms"`
	Bytes      []int64 `json:"bytes"`
}

// NewReport returns a report without rows.
func NewReport(bench string, env Env) *Report {
	return &Report{Schema: Schema, Bench: bench, Env: env, Rows: []Row{}}
}

// WriteFile puts the report's JSON in place at once: a reader sees the old file or the new one. What is no
// regular file, as /dev/stdout, is written to.
func (r *Report) WriteFile(path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("bench: write report: %w", err)
		}
	}()
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if info, err := os.Stat(path); err == nil && (!info.Mode().IsRegular() || strings.HasPrefix(path, "/dev/")) {
		return writeInto(path, b)
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // and not the link is replaced
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// writeInto writes to what there is.
func writeInto(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// ReadFile reads a report. Fields that this version does not know are ignored; another schema is an error.
func ReadFile(path string) (*Report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("bench: %s: %w", path, err)
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("bench: %s has schema %d, this program reads %d", path, r.Schema, Schema)
	}
	return &r, nil
}
