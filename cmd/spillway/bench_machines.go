package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/evaluation"
	"spillway/internal/lab"
)

// machineFlags name servers that are already there, on machines of the user's, in place of a lab.
type machineFlags struct {
	targets, hosts, guests []string
	pids                   map[string]int
	env                    map[string]string
}

func (f *machineFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVar(&f.targets, "target", nil, `measure a server that is there instead of a lab, as http://HOST:PORT/PATH/ or NAME=http://…; again for each server. It must
have the bench's files below PATH (docs/bench.md)`)
	fl.StringArrayVar(&f.hosts, "host", nil, `likewise, a server on a host of yours: http://… is arm baremetal, or nginx-host=http://…`)
	fl.StringArrayVar(&f.guests, "guest", nil, `likewise, a server in a VM of yours: ARM=http://HOST:PORT/PATH/,admin=http://HOST:PORT with ARM as vm, offload, lease or nginx-vm;
admin is where spillway serve --admin listens, and is left out where there is none`)
	fl.StringToIntVar(&f.pids, "pid", nil, `with --host and --guest, where they are this machine: processes whose CPU time to measure, as host=PID (the daemon), qemu=PID,
baremetal=PID`)
	fl.StringToStringVar(&f.env, "env", nil, `with --target, --host and --guest: what to say of the machines, as accelerator=kvm,qemu=9.2,kernel=6.12,link=10gbit`)
}

// given tells whether there are any.
func (f *machineFlags) given() bool { return len(f.targets)+len(f.hosts)+len(f.guests) > 0 }

// check refuses what is about a lab only, or about machines only.
func (f *machineFlags) check(cmd *cobra.Command) error {
	for _, name := range []string{"vm", "link", "cpus", "threshold", "busy-poll", "arms"} {
		if f.given() && cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s is about a lab, and with --target, --host or --guest there is none; --env says what your machines are", name)
		}
	}
	if !f.given() && len(f.pids)+len(f.env) > 0 {
		return fmt.Errorf("--pid and --env are about machines of yours: name them with --host and --guest")
	}
	_, err := f.machines()
	return err
}

// hostArms have their servers on the host.
var hostArms = []string{string(lab.Baremetal), string(lab.NginxHost)}

// machines are what the flags say.
func (f *machineFlags) machines() (*evaluation.Machines, error) {
	m := &evaluation.Machines{Running: f.pids}
	for _, kind := range []struct {
		flag, byDefault string
		values          []string
	}{{"host", string(lab.Baremetal), f.hosts}, {"guest", string(lab.VM), f.guests}, {"target", "target", f.targets}} {
		for _, value := range kind.values {
			s, err := evaluation.ParseServer(value, kind.byDefault)
			if err != nil {
				return nil, fmt.Errorf("--%s %w", kind.flag, err)
			}
			if onHost := slices.Contains(hostArms, s.Arm); kind.flag == "host" && !onHost || kind.flag == "guest" && onHost {
				return nil, fmt.Errorf("--%s %s: arms of a host are %v, the others are of a guest", kind.flag, value, hostArms)
			}
			m.Servers = append(m.Servers, s)
		}
	}
	for key, value := range f.env {
		field, ok := map[string]*string{"accelerator": &m.Env.Accelerator, "qemu": &m.Env.QEMU, "kernel": &m.Env.Kernel, "link": &m.Env.Link}[key]
		if !ok || value == "" {
			return nil, fmt.Errorf("--env %s=%s: say accelerator, qemu, kernel or link", key, value)
		}
		*field = value
	}
	if a := m.Env.Accelerator; a != "" && !slices.Contains([]string{"kvm", "tcg", "none"}, a) {
		return nil, fmt.Errorf("--env accelerator=%s: say kvm, tcg, or none where the guest is no VM", a)
	}
	return m, nil
}

// measureMachines measures the user's machines and publishes the report.
func (f *benchFlags) measureMachines(cmd *cobra.Command, measure func(*evaluation.Machines) (*bench.Report, error)) (*bench.Report, error) {
	m, err := f.machines.machines()
	if err != nil {
		return nil, err
	}
	report, err := measure(m)
	return report, f.publish(cmd, report, err)
}
