package dataset

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Names of the files beside the segments.
const (
	ManifestName = "manifest.json"
	MPDName      = "manifest.mpd"
	InitName     = "init.mp4"
)

// segmentName is the name of a media segment; numbers start at 1, as in the MPD's template.
func segmentName(number int) string { return fmt.Sprintf("seg-%05d.m4s", number) }

// manifestVersion changes when the same Spec gives other bytes than before.
const manifestVersion = 2

// Spec says what to generate. Equal Specs give equal bytes.
type Spec struct {
	Set      string `json:"set"`
	Segments int    `json:"segments"` // 0: all that the set has
	Seed     uint64 `json:"seed"`
}

// File is one generated file.
type File struct {
	Name   string `json:"name"` // in the data set's directory
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// Manifest describes a generated data set. It lies beside the files as ManifestName.
type Manifest struct {
	Version  int    `json:"version"`
	Spec     Spec   `json:"spec"` // with Segments resolved
	MPD      File   `json:"mpd"`
	Init     File   `json:"init"`
	Segments []File `json:"segments"`
}

// Files returns all files of the data set: MPD, initialization segment, media segments in order.
func (m *Manifest) Files() []File { return append([]File{m.MPD, m.Init}, m.Segments...) }

// SegmentBytes is the size of all media segments together.
func (m *Manifest) SegmentBytes() int64 {
	var sum int64
	for _, f := range m.Segments {
		sum += f.Size
	}
	return sum
}

// Load reads the manifest of a data set that was generated before. It does not look at the files.
func Load(dir string) (*Manifest, error) {
	path := filepath.Join(dir, ManifestName)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("dataset: %s: %w", path, err)
	}
	for _, f := range m.Files() {
		if f.Name == "" || filepath.Base(f.Name) != f.Name {
			return nil, fmt.Errorf("dataset: %s: file name %q", path, f.Name)
		}
	}
	return &m, nil
}

// complete says whether every file is there with its size.
func (m *Manifest) complete(dir string) bool {
	for _, f := range m.Files() {
		info, err := os.Lstat(filepath.Join(dir, f.Name))
		if err != nil || !info.Mode().IsRegular() || info.Size() != f.Size {
			return false
		}
	}
	return true
}

func (m *Manifest) write(dir string) error {
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	return writeFile(dir, ManifestName, append(b, '\n'))
}

// writeFile puts a small file in place at once.
func writeFile(dir, name string, content []byte) error {
	return replaceFile(dir, name, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// replaceFile writes a file under a temporary name and renames it. Nothing is left behind when it fails.
func replaceFile(dir, name string, write func(*os.File) error) (err error) {
	f, err := os.CreateTemp(dir, "."+name+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := write(f); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, name))
}
