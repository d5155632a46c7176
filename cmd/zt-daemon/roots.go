package main

import (
	"crypto/x509"
	"fmt"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// rootCAs are the certificate authorities of the Mozilla list, for a node whose
// system knows none, as an image from scratch; nil where the system has its own.
// (The package above this one does it in every process at its start, which would
// cost each kubectl 2 ms.)
func rootCAs() (*x509.CertPool, error) {
	system, err := x509.SystemCertPool()
	if err == nil && !system.Equal(x509.NewCertPool()) {
		return nil, nil
	}
	pool := x509.NewCertPool()
	for root := range bundle.Roots() {
		cert, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			return nil, fmt.Errorf("built-in certificate authorities: %w", err)
		}
		if root.Constraint == nil {
			pool.AddCert(cert)
		} else {
			pool.AddCertWithConstraint(cert, root.Constraint)
		}
	}
	return pool, nil
}
