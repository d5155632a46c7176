package main

import (
	"crypto/x509"
	"os"
	"os/exec"
	"runtime"
	"testing"
)

// TestRootCAs runs itself again where the system has no certificate authorities.
func TestRootCAs(t *testing.T) {
	const bare = "ZT_TEST_BARE"
	if os.Getenv(bare) != "" {
		pool, err := rootCAs()
		if err != nil {
			t.Fatal(err)
		}
		if pool == nil || pool.Equal(x509.NewCertPool()) {
			t.Error("no certificate authority is trusted")
		}
		return
	}
	if system, err := x509.SystemCertPool(); err == nil && !system.Equal(x509.NewCertPool()) {
		if pool, err := rootCAs(); err != nil || pool != nil {
			t.Errorf("%v, %v, where the system has its own", pool, err)
		}
	}
	if runtime.GOOS == "windows" || runtime.GOOS == "darwin" {
		t.Skip("this system always has certificate authorities")
	}
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	again := exec.CommandContext(t.Context(), exe, "-test.run=^TestRootCAs$")
	again.Env = append(os.Environ(), bare+"=1", "SSL_CERT_FILE="+dir+"/none", "SSL_CERT_DIR="+dir)
	if out, err := again.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
