package paas

import (
	"crypto/md5" // the fingerprint's form, not a protection
	"encoding/base64"
	"fmt"
	"strings"
)

// KeyBlob returns the decoded second word of an authorized_keys line, or the
// message that clients compare (contract 5.11).
func KeyBlob(public string) ([]byte, string) {
	words := strings.Fields(public)
	if len(words) < 2 {
		return nil, "Enter a public key: its type, the key in base64 and a comment."
	}
	blob, err := base64.StdEncoding.DecodeString(words[1])
	if err != nil {
		return nil, "Incorrect padding"
	}
	return blob, ""
}

// Fingerprint returns the MD5 of a key's blob as hex pairs with colons.
func Fingerprint(blob []byte) string {
	sum := md5.Sum(blob)
	pairs := make([]string, len(sum))
	for i, b := range sum {
		pairs[i] = fmt.Sprintf("%02x", b)
	}
	return strings.Join(pairs, ":")
}
