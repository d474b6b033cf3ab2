package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/deis/deis/internal/paas"
)

// The kinds of body that requests may have (contract 2.2).
const (
	kindJSON      = "application/json"
	kindForm      = "application/x-www-form-urlencoded"
	kindMultipart = "multipart/form-data"
)

// form reads the body as an object: JSON, or a form (contract 2.2). An empty
// body is an empty object, whatever it is said to be.
func (c *call) form() (*form, error) {
	if c.r.ContentLength == 0 {
		return &form{fields: map[string]any{}}, nil
	}
	header := c.r.Header.Get("Content-Type")
	kind, _, _ := strings.Cut(header, ";")
	switch strings.ToLower(strings.TrimSpace(kind)) {
	case "", kindJSON:
		return c.jsonForm()
	case kindForm:
		text, err := io.ReadAll(c.r.Body) // not ParseForm, which leaves the body of a DELETE
		if err != nil {
			return nil, badForm(err)
		}
		values, err := url.ParseQuery(string(text))
		if err != nil {
			return nil, badForm(err)
		}
		return formOf(values), nil
	case kindMultipart:
		if err := c.r.ParseMultipartForm(maxBody); err != nil {
			return nil, badForm(err)
		}
		defer func() { _ = c.r.MultipartForm.RemoveAll() }() // files that nobody asked for
		return formOf(c.r.MultipartForm.Value), nil
	}
	return nil, &statusError{http.StatusUnsupportedMediaType, fmt.Sprintf("Unsupported media type '%s' in request.", header)}
}

// formOf takes the last value of each field, as the original does.
func formOf(values url.Values) *form {
	f := &form{fields: map[string]any{}}
	for name, all := range values {
		f.fields[strings.ToValidUTF8(name, "\uFFFD")] = strings.ToValidUTF8(all[len(all)-1], "\uFFFD")
	}
	return f
}

func badForm(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return err
	}
	return paas.Errorf(paas.Invalid, "Form parse error")
}

func (c *call) jsonForm() (*form, error) {
	dec := json.NewDecoder(c.r.Body)
	dec.UseNumber()
	var v any
	err := dec.Decode(&v)
	if errors.Is(err, io.EOF) {
		return &form{fields: map[string]any{}}, nil
	}
	if err == nil {
		if _, end := dec.Token(); end != io.EOF {
			err = errors.New("more than one value")
		}
	}
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, err
		}
		return nil, paas.Errorf(paas.Invalid, "JSON parse error - %v", err)
	}
	switch v := v.(type) {
	case map[string]any:
		return &form{fields: v}, nil
	case nil:
		// The one error whose body is a list.
		return nil, &statusError{http.StatusBadRequest, []string{paas.MsgNull}}
	}
	return nil, paas.FieldError("non_field_errors", "Invalid data. Expected a dictionary, but got %s.", kindOf(v))
}

// kindOf names a JSON value as the original's language does.
func kindOf(v any) string {
	switch v := v.(type) {
	case []any:
		return "list"
	case string:
		return "unicode"
	case bool:
		return "bool"
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") {
			return "float"
		}
		return "int"
	}
	return "dict"
}

// form is a request's object. Its methods collect what is wrong with it.
type form struct {
	fields map[string]any
	faults map[string][]string
}

// err reports every field that is wrong at once.
func (f *form) err() error {
	if len(f.faults) == 0 {
		return nil
	}
	return &paas.Error{Code: paas.Invalid, Fields: f.faults}
}

func (f *form) fault(name string, messages ...string) {
	for _, m := range messages {
		if f.faults == nil {
			f.faults = map[string][]string{}
		}
		if !slices.Contains(f.faults[name], m) {
			f.faults[name] = append(f.faults[name], m)
		}
	}
}

func (f *form) has(name string) bool {
	_, ok := f.fields[name]
	return ok
}

// required returns a field that must be there and not be blank.
func (f *form) required(name string, checks ...func(string) []string) string {
	if !f.has(name) {
		f.fault(name, paas.MsgRequired)
		return ""
	}
	return f.filled(name, checks...)
}

// filled returns a field that may be missing but not blank.
func (f *form) filled(name string, checks ...func(string) []string) string {
	text := f.optional(name, checks...)
	if v, ok := f.fields[name]; ok && v == "" {
		f.fault(name, paas.MsgBlank)
	}
	return text
}

// optional returns a field as text, "" where there is none. The checks see
// texts that are not empty.
func (f *form) optional(name string, checks ...func(string) []string) string {
	v, ok := f.fields[name]
	if !ok {
		return ""
	}
	switch v.(type) {
	case nil:
		f.fault(name, paas.MsgNull)
		return ""
	case map[string]any, []any:
		f.fault(name, "Not a valid string.")
		return ""
	}
	text := paas.Text(v)
	for _, check := range checks {
		if text != "" {
			f.fault(name, check(text)...)
		}
	}
	return text
}

// object returns a field that holds an object, or a text with the JSON of one.
func (f *form) object(name string) map[string]any {
	v, ok := f.fields[name]
	if !ok {
		return nil
	}
	if text, ok := v.(string); ok {
		dec := json.NewDecoder(strings.NewReader(text))
		dec.UseNumber()
		if dec.Decode(&v) != nil {
			v = text
		}
	}
	switch v := v.(type) {
	case map[string]any:
		return v
	case nil:
		f.fault(name, paas.MsgNull)
	default:
		f.fault(name, fmt.Sprintf("Expected a dictionary of items but got %s.", kindOf(v)))
	}
	return nil
}

// texts is object for one whose values are all texts.
func (f *form) texts(name string) map[string]string {
	texts := map[string]string{}
	for key, v := range f.object(name) {
		text, ok := v.(string)
		if !ok {
			f.fault(name, "Expected a dictionary of strings.")
			continue
		}
		texts[key] = text
	}
	return texts
}

// atMost checks a length.
func atMost(max int) func(string) []string {
	return func(s string) []string { return paas.CheckLength(s, max) }
}
