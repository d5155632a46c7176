package daemon

import (
	"errors"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
)

// testCA is a certificate that records may carry; its key is nowhere.
const testCA = `-----BEGIN CERTIFICATE-----
MIIBdjCCARugAwIBAgIUAU4EHGsg6/sP62WsZA0gq5fjr2MwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjMxMTM2MzJaGA8yMTI2MTAzMDExMzYz
MlowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABO3Y
ld6CKN1NeiBcAG0PL6m3l+bX62dTI/gnbcgNdX45WxRho9pFITIl3kfryZyth3Xu
Lto+FwQ/66uhJBrxLRGjUzBRMB0GA1UdDgQWBBSWHGnqAAm/2nnwsTOgP82Nkchn
GDAfBgNVHSMEGDAWgBSWHGnqAAm/2nnwsTOgP82NkchnGDAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0kAMEYCIQD8pPmudkpdX7UuNg+taZ5WbJBoL+dxoYda
Y0FyDC6k8QIhAPGRZnNbJGEgnTQ3qZRyKWiYPRmL5IZuJelbtbeeWH7a
-----END CERTIFICATE-----
`

// A hostile relay serves an older record of a cluster that was removed, or whose
// newest record does not verify at present: its key or CA may have been stolen.
func TestRecordFloor(t *testing.T) {
	k := key.NewNetwork()
	signed := func(version uint64, removed bool) *auth.Record {
		t.Helper()
		r := auth.Record{Network: auth.IDOf(k.Public()), Name: "c1", Version: version, NotAfter: time.Now().Add(time.Hour), Removed: removed}
		if !removed {
			r.KeepUser, r.TLSName = true, "kubernetes"
			r.Keys = []auth.Dated[key.ClusterPublic]{{Value: key.NewCluster().Public()}}
			r.CAs = []auth.Dated[string]{{Value: testCA}}
		}
		s, err := auth.SignRecord(r, auth.NetworkSigner(k))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	older, end, newer := signed(4, false), signed(5, true), signed(6, false)
	for name, floor := range map[string]recordFloor{"removed": {record: end, version: 5}, "not verified": {version: 5}} {
		var rollback *auth.RollbackError
		if err := floor.check(older); !errors.As(err, &rollback) || rollback.Had != 5 {
			t.Errorf("%s: an older record: %v, want a rollback from version 5", name, err)
		}
		if err := floor.check(newer); err != nil {
			t.Errorf("%s: a newer record: %v", name, err)
		}
	}
	if err := (recordFloor{record: end, version: 5}).check(end); !errors.Is(err, auth.ErrSame) {
		t.Errorf("the same record: %v", err)
	}
	if err := (recordFloor{}).check(older); err != nil {
		t.Errorf("the first record: %v", err)
	}
}
