package router

import (
	"strings"

	"github.com/deis/deis/routerconf"
)

// hostKey makes the key of the routing table from a Host header or :authority:
// lower case, without port and without one final dot. What cannot be a host
// name becomes "", which no table holds.
func hostKey(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	host = strings.TrimSuffix(host, ".")
	if len(host) > routerconf.MaxHostLength {
		return ""
	}
	return lowerASCII(host)
}

// lowerASCII is strings.ToLower for names that are ASCII. Others stay as they
// are: folding the Kelvin sign into a k would let one name stand for another.
func lowerASCII(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for j, c := range b {
				if 'A' <= c && c <= 'Z' {
					b[j] = c + 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}
