package build

import (
	"fmt"
	"os"

	"github.com/deis/deis/internal/paas"
)

// readCertificates returns the certificates (PEM) of a file, "" if no file is named.
func readCertificates(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("certificates for builds: %w", err)
	}
	certificates, err := paas.TrustedCertificates(string(text))
	if err != nil {
		return "", fmt.Errorf("certificates for builds: %s: %w", path, err)
	}
	return certificates, nil
}
