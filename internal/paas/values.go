package paas

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Text returns a decoded JSON scalar as the original's language prints it
// (contract 5.2): 5000, 1.5, True. Numbers are json.Number. Objects and lists
// become their JSON text.
func Text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case bool:
		if v {
			return "True"
		}
		return "False"
	case json.Number:
		return numberText(v)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

func numberText(n json.Number) string {
	if !strings.ContainsAny(n.String(), ".eE") {
		return n.String()
	}
	f, err := n.Float64()
	switch {
	case err != nil:
		return n.String()
	case f == math.Trunc(f) && math.Abs(f) < 1e16:
		return strconv.FormatFloat(f, 'f', 1, 64)
	case f != 0 && (math.Abs(f) < 1e-4 || math.Abs(f) >= 1e16):
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	return strconv.FormatFloat(f, 'f', -1, 64)
}

// pythonInt converts a decoded JSON value as the original does (contract 5.5):
// texts of digits and truncated fractions count. The error is the reason that
// clients compare.
func pythonInt(v any) (int64, error) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, nil
		}
		return 0, nil
	case string:
		n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("invalid literal for int() with base 10: '%s'", v)
		}
		return n, nil
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n, nil
		}
		f, err := v.Float64()
		if err != nil || math.Abs(f) > math.MaxInt32 {
			return 0, fmt.Errorf("%s is out of range", v)
		}
		return int64(f), nil
	case nil:
		return 0, fmt.Errorf("int() argument must be a string or a number, not 'NoneType'")
	}
	return 0, fmt.Errorf("int() argument must be a string or a number")
}
