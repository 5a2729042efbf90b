package feature

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Kernel is the version of a Linux kernel.
type Kernel struct{ Major, Minor, Patch int }

func (k Kernel) String() string {
	if k.Patch == 0 {
		return fmt.Sprintf("%d.%d", k.Major, k.Minor)
	}
	return fmt.Sprintf("%d.%d.%d", k.Major, k.Minor, k.Patch)
}

// AtLeast reports whether k is min or newer.
func (k Kernel) AtLeast(min Kernel) bool {
	if k.Major != min.Major {
		return k.Major > min.Major
	}
	if k.Minor != min.Minor {
		return k.Minor > min.Minor
	}
	return k.Patch >= min.Patch
}

// ParseKernel reads a release as uname(2) gives it: "6.1.0-18-amd64", "6.12.3+deb13", "6.19-rc1".
func ParseKernel(release string) (Kernel, error) {
	var k Kernel
	// Patch stays 0 when it is missing or no number: "6.19-rc1".
	if n, _ := fmt.Sscanf(release, "%d.%d.%d", &k.Major, &k.Minor, &k.Patch); n < 2 || k.Major < 1 || k.Minor < 0 || k.Patch < 0 {
		return Kernel{}, fmt.Errorf("kernel release %q: no version number at its start", release)
	}
	return k, nil
}

// RunningKernel returns the version and the release string of the kernel that runs.
func RunningKernel() (Kernel, string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Kernel{}, "", fmt.Errorf("uname: %w", err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	k, err := ParseKernel(release)
	return k, release, err
}
