package controller

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/api"
)

// signed makes a certificate of a template, and its key.
func signed(t *testing.T, template x509.Certificate) (chain, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

// TestCertRules is contract 5.10. Who may serve for which host is in
// TestCertificates.
func TestCertRules(t *testing.T) {
	p := newPlatform(t)
	p.user("root")
	alice, bob := p.user("alice"), p.user("bob")
	past := time.Date(2016, 3, 5, 17, 14, 27, 0, time.UTC)
	chain, key := signed(t, x509.Certificate{Subject: pkix.Name{CommonName: "autotest.example.com"}, NotAfter: past})
	issuer, otherKey := certificate(t, "an issuer")
	nameless, namelessKey := signed(t, x509.Certificate{NotAfter: past})
	wild, wildKey := signed(t, x509.Certificate{Subject: pkix.Name{CommonName: "*.foo.com"}, NotAfter: past})
	alternative, alternativeKey := signed(t, x509.Certificate{DNSNames: []string{"San.foo.com", "b.foo.com"}, NotAfter: past})
	post := func(chain, key string, name ...string) map[string]any {
		body := map[string]any{"certificate": chain, "key": key}
		for _, n := range name {
			body["common_name"] = n
		}
		return body
	}
	const wildcards = `{"common_name":["Wildcard certificates are not supported"]}`
	p.rows([]row{
		{alice, "POST", "/v1/certs", nil, 400, `{"certificate":["This field is required."],"key":["This field is required."]}`},
		{alice, "POST", "/v1/certs", post("", ""), 400, `{"certificate":["This field may not be blank."],"key":["This field may not be blank."]}`},
		{alice, "POST", "/v1/certs", post("rubbish", key), 400, `{"certificate":["Could not load certificate: no PEM certificate found"]}`},
		{alice, "POST", "/v1/certs", post(key, key), 400, `{"certificate":["Could not load certificate: no PEM certificate found"]}`},
		{alice, "POST", "/v1/certs", post(issuer+chain, key), 400, "*"}, // the first one counts
		{alice, "POST", "/v1/certs", post(chain, otherKey), 400, "*"},
		{alice, "POST", "/v1/certs", post(chain, "rubbish"), 400, "*"},
		{alice, "POST", "/v1/certs", post(chain, key, "*.example.com"), 400, wildcards},
		{alice, "POST", "/v1/certs", post(wild, wildKey), 400, wildcards},
		{alice, "POST", "/v1/certs", post(chain, key, ""), 400, `{"common_name":["This field may not be blank."]}`},
		{alice, "POST", "/v1/certs", post(nameless, namelessKey), 400, `{"common_name":["The certificate holds no name."]}`},
		{alice, "POST", "/v1/certs", post(nameless, namelessKey, "named.foo.com"), 201, "*"},
		{alice, "POST", "/v1/certs", post(alternative, alternativeKey), 201, "*"},
		{alice, "GET", "/v1/certs/san.foo.com", nil, 200, "*"},
	})
	stamp := `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dUTC`
	body := alice.want(201, "POST", "/v1/certs/", post("text before\n"+chain+issuer, key))
	if !regexpMatch(`^{"id":\d+,"owner":"alice","common_name":"autotest\.example\.com","expires":"2016-03-05T17:14:27UTC","created":"`+stamp+`","updated":"`+stamp+`"}$`, body) {
		t.Errorf("cert = %s", body)
	}
	p.rows([]row{
		{alice, "GET", "/v1/certs/autotest.example.com", nil, 200, body},
		{alice, "GET", "/v1/certs/Autotest.Example.com/", nil, 200, body},
		{alice, "POST", "/v1/certs", post(chain, key), 400, `{"common_name":["This field must be unique."]}`},
		{bob, "POST", "/v1/certs", post(chain, key), 400, `{"common_name":["This field must be unique."]}`},
		{bob, "POST", "/v1/certs", post(chain, key, "foo.example.com"), 201, "*"}, // need not be covered
		{bob, "GET", "/v1/certs/autotest.example.com", nil, 404, notFound},
		{alice, "PUT", "/v1/certs/autotest.example.com", nil, 405, `{"detail":"Method 'PUT' not allowed."}`},
		{alice, "DELETE", "/v1/certs/autotest.example.com", nil, 204, ""},
		{alice, "DELETE", "/v1/certs/autotest.example.com", nil, 404, notFound},
	})
	var l api.List[api.Cert]
	if alice.json(&l, 200, "GET", "/v1/certs", nil); l.Count != 2 || l.Results[0].CommonName != "named.foo.com" {
		t.Errorf("certs = %+v", l.Results)
	}
	for _, path := range []string{"/v1/certs", "/v1/certs/named.foo.com"} {
		if body := alice.want(200, "GET", path, nil); strings.Contains(body, "BEGIN") {
			t.Errorf("%s shows what is write-only: %s", path, body)
		}
	}
	// No error tells anything of the key.
	_, body = alice.do("POST", "/v1/certs", post(chain, "-----BEGIN PRIVATE KEY-----\nY2FuYXJ5\n-----END PRIVATE KEY-----\n"))
	if strings.Contains(body, "Y2FuYXJ5") || !strings.HasPrefix(body, `{"key":["Could not use private key: `) {
		t.Errorf("a bad key is answered %s", body)
	}
}
