package daemon

import (
	"context"
	"time"

	"banger/api"
	"banger/internal/version"
)

// certificateLife is how long a certificate opens new sessions; sessions that
// are open go on.
const certificateLife = 5 * time.Minute

func (d *Daemon) getVersion(context.Context, *struct{}) (api.Version, error) {
	return api.Version{Version: version.Version, API: api.APIVersion, Owner: d.record.Owner}, nil
}

func (d *Daemon) signCertificate(_ context.Context, in *struct{ Body api.CertificateRequest }) (api.Certificate, error) {
	cert, until, err := d.hosts.SignUser(in.Body.PublicKey, certificateLife, "owner "+d.record.Owner)
	if err != nil {
		return api.Certificate{}, api.BadRequest("%v", err)
	}
	return api.Certificate{Certificate: cert, HostCA: d.hosts.HostCA(), ValidBefore: until}, nil
}
