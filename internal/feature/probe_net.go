package feature

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inFreshNetNS runs f in a new network namespace, so that nothing it does can be seen outside. The thread is never given
// back: it ends with its goroutine, and the namespace with it.
func inFreshNetNS(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("new network namespace to try it in: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

func probeNetNS() error {
	err := inFreshNetNS(func() error { return nil })
	return absentIf(err, unix.EINVAL, unix.ENOSYS)
}

func probeNftSocket() error {
	return inFreshNetNS(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "spillway-probe", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{
			Name: "prerouting", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle,
		})
		if err := c.Flush(); err != nil {
			// Dialing netlink without nf_tables: EPROTONOSUPPORT; without the inet family: EAFNOSUPPORT.
			return absentIf(fmt.Errorf("nftables table of family inet: %w", err), unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EOPNOTSUPP, unix.EINVAL)
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}},
			&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, 1)},
			&expr.TProxy{TableFamily: unix.NFPROTO_INET, RegPort: 1},
			&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint32(nil, 1)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
		}})
		if err := c.Flush(); err != nil {
			// An unknown expression is ENOENT (nf_tables_expr_parse).
			return absentIf(fmt.Errorf("nftables expressions socket and tproxy: %w", err), unix.ENOENT, unix.EOPNOTSUPP)
		}
		return nil
	})
}

func probePolicyRouting() error {
	return inFreshNetNS(func() error {
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table, rule.Priority = unix.AF_INET, 1, 100, 1
		if err := netlink.RuleAdd(rule); err != nil {
			return absentIf(fmt.Errorf("ip rule add fwmark: %w", err), unix.EOPNOTSUPP, unix.EAFNOSUPPORT)
		}
		return nil
	})
}

func probeVsock() error {
	err := withSocket(unix.AF_VSOCK, unix.SOCK_STREAM, 0, func(int) error { return nil })
	return absentIf(err, unix.EAFNOSUPPORT)
}

// probeOpenat2 opens the working directory, and wants a way out of it refused.
func probeOpenat2() error {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, ".", &how)
	if err != nil {
		return absentIf(fmt.Errorf("openat2: %w", err), unix.ENOSYS, unix.E2BIG)
	}
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	fd, err = unix.Openat2(unix.AT_FDCWD, "..", &how)
	switch {
	case errors.Is(err, unix.EXDEV):
		return nil
	case err != nil:
		return fmt.Errorf("openat2 of ..: %w", err)
	}
	_ = unix.Close(fd) // O_PATH: nothing to lose
	return absentf("openat2 with RESOLVE_BENEATH follows ..")
}
