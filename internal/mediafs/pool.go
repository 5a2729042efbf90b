package mediafs

import (
	"container/list"
	"os"
	"slices"
	"time"
)

// pool holds attributes and idle descriptors by name. The Dir's mutex guards it; it makes no system call, so whatever it lets go
// of is returned to be closed outside the mutex.
type pool struct {
	maxIdle, maxIdlePerFile, maxPaths int

	entries map[string]*entry
	recent  list.List // of *entry, most recently used first
	idle    list.List // of idleFile, most recently returned first
}

// entry is what is known about one name.
type entry struct {
	name     string
	attr     attributes
	checked  time.Time
	readable bool            // an open(2) has succeeded on exactly these attributes
	idle     []*list.Element // in pool.idle, most recently returned last
	place    *list.Element   // in pool.recent
}

type idleFile struct {
	file  *os.File
	entry *entry
}

func newPool(o Options) pool {
	return pool{
		maxIdle: max(o.MaxIdle, 0), maxIdlePerFile: max(o.MaxIdlePerFile, 0), maxPaths: max(o.MaxPaths, 1),
		entries: make(map[string]*entry),
	}
}

// find returns the entry of a name, or nil, and notes the use.
func (p *pool) find(name string) *entry {
	e := p.entries[name]
	if e != nil {
		p.recent.MoveToFront(e.place)
	}
	return e
}

// remember notes fresh attributes. It returns whether a file with these has been opened, now or before, and the descriptors that
// the attributes have made stale.
func (p *pool) remember(name string, attr attributes, asked time.Time, readable bool) (bool, []*os.File) {
	var stale []*os.File
	e := p.find(name)
	switch {
	case e == nil:
		e = &entry{name: name}
		p.entries[name] = e
		e.place = p.recent.PushFront(e)
		if p.recent.Len() > p.maxPaths {
			stale = p.forget(p.recent.Back().Value.(*entry).name)
		}
	case e.attr.id != attr.id:
		stale = p.drain(e)
		e.readable = false
	}
	e.attr, e.checked = attr, asked
	e.readable = e.readable || readable
	return e.readable, stale
}

// forget drops a name and returns its descriptors.
func (p *pool) forget(name string) []*os.File {
	e := p.entries[name]
	if e == nil {
		return nil
	}
	delete(p.entries, name)
	p.recent.Remove(e.place)
	return p.drain(e)
}

// clear drops everything and returns all descriptors.
func (p *pool) clear() []*os.File {
	var files []*os.File
	for name := range p.entries {
		files = append(files, p.forget(name)...)
	}
	return files
}

// pop returns an idle descriptor of exactly the file that want describes, or nil.
func (p *pool) pop(name string, want identity) *os.File {
	e := p.entries[name]
	if e == nil || e.attr.id != want || len(e.idle) == 0 {
		return nil
	}
	last := e.idle[len(e.idle)-1]
	e.idle = e.idle[:len(e.idle)-1]
	return p.idle.Remove(last).(idleFile).file
}

// push keeps a descriptor if it can, and returns those that must be closed.
func (p *pool) push(name string, id identity, f *os.File) []*os.File {
	e := p.entries[name]
	if e == nil || e.attr.id != id || len(e.idle) >= p.maxIdlePerFile || p.maxIdle == 0 {
		return []*os.File{f}
	}
	e.idle = append(e.idle, p.idle.PushFront(idleFile{file: f, entry: e}))
	if p.idle.Len() <= p.maxIdle {
		return nil
	}
	oldest := p.idle.Back()
	victim := p.idle.Remove(oldest).(idleFile)
	i := slices.Index(victim.entry.idle, oldest)
	victim.entry.idle = slices.Delete(victim.entry.idle, i, i+1)
	return []*os.File{victim.file}
}

func (p *pool) drain(e *entry) []*os.File {
	files := make([]*os.File, 0, len(e.idle))
	for _, el := range e.idle {
		files = append(files, p.idle.Remove(el).(idleFile).file)
	}
	e.idle = nil
	return files
}
