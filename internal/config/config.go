// Package config reads the TOML files of `spillway host` and `spillway serve`.
//
// It stands before the data path: a daemon takes the defaults ([DefaultHost], [DefaultServe]), reads the file over them
// ([LoadHost], [LoadServe]), lets its flags change fields of the result, and only then calls Validate, so that a flag can
// still mend what the file says. The commented samples in examples/ are the reference of all keys; a test holds them
// equal to the defaults.
//
// It must not be used to check anything that needs the system, such as whether a path exists: that is for whoever uses the
// value, and for the doctor. Channel addresses are checked for their kind only; package channel reads the rest.
//
// It needs no capability and no particular kernel.
package config

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"

	"github.com/BurntSushi/toml"
)

// Error is one mistake in a configuration file.
type Error struct {
	File string // empty for a mistake that Validate found
	Line int    // 0 when it has no single line
	Key  string // for instance "vm[0].addresses" or "limits.stall_timeout"
	Err  error  // what is wrong and what to do
}

func (e *Error) Error() string {
	var s string
	if e.File != "" {
		s = e.File + ":"
		if e.Line > 0 {
			s += fmt.Sprintf("%d:", e.Line)
		}
		s += " "
	}
	if e.Key != "" {
		s += e.Key + ": "
	}
	return s + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// ErrUnknownKey is matched by the Error of a key that does not exist.
var ErrUnknownKey = errors.New("unknown key")

// elementError is the failure to decode one element of an array of tables.
type elementError struct {
	index int // from 0
	err   error
}

func (e *elementError) Error() string { return e.err.Error() }
func (e *elementError) Unwrap() error { return e.err }

// decode decodes the text of the file over the defaults in into, a pointer to a struct. elements decodes what into leaves as
// toml.Primitive, and may be nil. known is the public type, which says what keys there are.
func decode(file, text string, into any, elements func(toml.MetaData) error, known reflect.Type) error {
	meta, err := toml.Decode(text, into)
	if err == nil && elements != nil {
		err = elements(meta)
	}
	if err != nil {
		return decodeError(file, text, err)
	}
	return unknownKeys(file, text, meta, knownKeys(known))
}

// typeMismatch is the text of the decoder's errors that are no toml.ParseError, without its optional line.
var typeMismatch = regexp.MustCompile(`^toml: (?:line (\d+) )?\(last key "(.+?)"\): (.*)$`)

// decodeError puts the decoder's error into our form.
func decodeError(file, text string, err error) error {
	mistake := &Error{File: file, Err: err}
	var parse toml.ParseError
	if errors.As(err, &parse) {
		mistake.Line, mistake.Key, mistake.Err = parse.Position.Line, parse.LastKey, errors.New(parse.Message)
	} else if m := typeMismatch.FindStringSubmatch(err.Error()); m != nil {
		mistake.Line, _ = strconv.Atoi(m[1]) // none is 0
		mistake.Key, mistake.Err = m[2], errors.New(m[3])
	}
	// For arrays of tables the decoder tells the line of the last element, whichever is wrong.
	var element *elementError
	if errors.As(err, &element) {
		mistake.Line = lineOf(text, splitKey(mistake.Key), element.index)
	}
	return mistake
}

// unknownKeys returns an error for each key of the file that we do not have. The decoder would also take Admin for admin.
func unknownKeys(file, text string, meta toml.MetaData, known []toml.Key) error {
	var errs []error
	reported := map[string]bool{}
	for _, key := range slices.Concat(meta.Keys(), meta.Undecoded()) {
		name := key.String()
		if reported[name] || slices.ContainsFunc(known, func(k toml.Key) bool { return slices.Equal(k, key) }) {
			continue
		}
		reported[name] = true
		if parent := key[:len(key)-1]; reported[parent.String()] {
			continue // below an unknown table, which says it all
		}
		errs = append(errs, &Error{
			File: file, Line: lineOf(text, key, anyElement), Key: name,
			Err: fmt.Errorf("%w; %s", ErrUnknownKey, suggestion(key, known)),
		})
	}
	return errors.Join(errs...)
}

// problems collects what Validate finds.
type problems []error

func (p *problems) add(key, format string, args ...any) {
	*p = append(*p, &Error{Key: key, Err: fmt.Errorf(format, args...)})
}

func (p problems) join() error { return errors.Join(p...) }
