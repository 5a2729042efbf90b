// Package nginx runs the nginx of a Debian package that has been unpacked, not installed, as scripts/setup.sh leaves it: the peer that the evaluation
// compares with. Binary and libraries are the package's own, byte for byte, on the host as well as in a VM.
//
// It stands beside the data path: it knows where the files of the package are and what a well-tuned configuration says, and starts nothing. It needs no
// capability.
package nginx

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// ErrNone means that no package has been unpacked.
var ErrNone = errors.New("no nginx has been unpacked")

// Where Debian has things on amd64.
const (
	binary     = "usr/sbin/nginx"
	loader     = "lib64/ld-linux-x86-64.so.2" // the program interpreter of the psABI; in the package libc6 a symbolic link
	libraryDir = "lib/x86_64-linux-gnu"
)

// GuestBinary is the program's path in a guest that has [Package.GuestFiles].
const GuestBinary = "/" + binary

// Package is an unpacked one, together with the packages of its libraries.
type Package struct {
	Root    string // what was / in the packages
	Version string // Debian's
}

// Find returns the newest package below dir, which has a directory for each version.
func Find(dir string) (Package, error) {
	found, err := filepath.Glob(filepath.Join(dir, "[0-9]*", binary))
	if err != nil {
		return Package{}, err
	}
	if len(found) == 0 {
		return Package{}, fmt.Errorf("%w below %s", ErrNone, dir)
	}
	root, err := filepath.Abs(filepath.Clean(found[len(found)-1][:len(found[len(found)-1])-len(binary)]))
	return Package{Root: root, Version: filepath.Base(root)}, err
}

// Command is how a machine runs the program that does not have its libraries: by the package's own loader.
func (p Package) Command(config string) []string {
	dirs := p.path(libraryDir) + ":" + p.path("usr/"+libraryDir)
	return []string{p.path(libraryDir + "/" + path.Base(loader)), "--library-path", dirs, p.path(binary), "-c", config}
}

// GuestCommand is how a guest that has [Package.GuestFiles] runs it.
func GuestCommand(config string) []string { return []string{GuestBinary, "-c", config} }

func (p Package) path(name string) string { return filepath.Join(p.Root, filepath.FromSlash(name)) }

// GuestFiles are the files of this machine that a guest without a distribution needs to run the program, by their paths there.
func (p Package) GuestFiles() (map[string]string, error) {
	files := map[string]string{GuestBinary: p.path(binary), "/" + loader: p.path(libraryDir + "/" + path.Base(loader))}
	for queue := []string{p.path(binary)}; len(queue) > 0; queue = queue[1:] {
		needed, err := libraries(queue[0])
		if err != nil {
			return nil, fmt.Errorf("nginx: %w", err)
		}
		for _, name := range needed {
			guestPath := "/" + libraryDir + "/" + name
			if files[guestPath] != "" || name == path.Base(loader) {
				continue
			}
			file, err := p.library(name)
			if err != nil {
				return nil, err
			}
			files[guestPath] = file
			queue = append(queue, file)
		}
	}
	return files, nil
}

// libraries are the names of those that a file needs by itself.
func libraries(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ImportedLibraries()
}

// library finds one in the package.
func (p Package) library(name string) (string, error) {
	candidates := []string{p.path(libraryDir + "/" + name), p.path("usr/" + libraryDir + "/" + name)}
	at := slices.IndexFunc(candidates, func(c string) bool {
		info, err := os.Stat(c)
		return err == nil && info.Mode().IsRegular()
	})
	if at < 0 {
		return "", fmt.Errorf("nginx: %s is not in %s: remove that directory and run scripts/setup.sh again", name, p.Root)
	}
	return candidates[at], nil
}
