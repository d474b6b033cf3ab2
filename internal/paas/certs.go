package paas

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
)

// MaxCommonName bounds the name under which a certificate is kept.
const MaxCommonName = MaxDomain

// maxCertificate bounds chain and key together, in bytes: what routers take.
const maxCertificate = 256 << 10

// NewCertificate checks an uploaded certificate, PEM with its chain behind it,
// and its key (contract 5.10). name is the one under which it is served; with
// "" that is the subject's common name, or else the first DNS name. A wildcard
// is taken from the certificate only, and only "*." and platformDomain.
// Expired certificates pass. No error shows anything of the key.
func NewCertificate(chainPEM, keyPEM, name, platformDomain string) (Certificate, error) {
	if len(chainPEM)+len(keyPEM) > maxCertificate {
		return Certificate{}, FieldError("certificate", "Could not load certificate: longer than %d bytes", maxCertificate)
	}
	chain, leaf, err := parseChain(chainPEM)
	if err != nil {
		return Certificate{}, FieldError("certificate", "Could not load certificate: %v", err)
	}
	if _, err := tls.X509KeyPair([]byte(chain), []byte(keyPEM)); err != nil {
		return Certificate{}, FieldError("key", "Could not use private key: %v", err)
	}
	if strings.Contains(name, "*") {
		return Certificate{}, FieldError("common_name", "Wildcard certificates are not supported")
	}
	if name == "" {
		if name = ownName(leaf); name == "" {
			return Certificate{}, FieldError("common_name", "The certificate holds no name.")
		}
		if strings.Contains(name, "*") && strings.ToLower(name) != "*."+platformDomain {
			return Certificate{}, FieldError("common_name", "Wildcard certificates are not supported")
		}
	}
	if faults := CheckLength(name, MaxCommonName); faults != nil {
		return Certificate{}, FieldError("common_name", "%s", faults[0])
	}
	return Certificate{CommonName: strings.ToLower(name), Chain: chain, Key: keyPEM, Expires: leaf.NotAfter.UTC()}, nil
}

// TrustedCertificates returns the certificates of a PEM text, at most 256 KiB,
// without what else is in it, such as keys.
func TrustedCertificates(text string) (string, error) {
	if len(text) > maxCertificate {
		return "", fmt.Errorf("longer than %d bytes", maxCertificate)
	}
	chain, _, err := parseChain(text)
	return chain, err
}

func ownName(leaf *x509.Certificate) string {
	if leaf.Subject.CommonName == "" && len(leaf.DNSNames) > 0 {
		return leaf.DNSNames[0]
	}
	return leaf.Subject.CommonName
}

// parseChain returns the certificates of a PEM text, other blocks and text left
// out, and the first of them.
func parseChain(text string) (chain string, leaf *x509.Certificate, err error) {
	var clean strings.Builder
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", nil, err
		}
		if leaf == nil {
			leaf = cert
		}
		if err := pem.Encode(&clean, &pem.Block{Type: block.Type, Bytes: block.Bytes}); err != nil {
			return "", nil, err
		}
	}
	if leaf == nil {
		return "", nil, fmt.Errorf("no PEM certificate found")
	}
	return clean.String(), leaf, nil
}
