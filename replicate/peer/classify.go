package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"time"
)

// The alerts that the other end of a handshake sends (RFC 8446 section 6).
const (
	alertHandshakeFailure = 40
	alertBadCertificate   = 42
	alertExpired          = 45
	alertUnknown          = 46
	alertUnknownCA        = 48
	alertProtocolVersion  = 70
	alertNoCertificate    = 116
	alertNoProtocol       = 120
)

// isAlert reports whether err is that alert, sent by the other end. The type of alerts over TCP is not exported; its text
// is the same as that of the type which is.
func isAlert(err error, codes ...uint8) bool {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return false
	}
	for _, c := range codes {
		if op.Err.Error() == tls.AlertError(c).Error() {
			return true
		}
	}
	return false
}

// sayName turns a Credentials.Name into words.
func sayName(name string) string {
	if f, ok := strings.CutPrefix(name, tokenLabel); ok {
		return "the cluster token " + f
	}
	return "certificates from files (--tls-ca, --tls-cert, --tls-key)"
}

const sameToken = "give all nodes the same: one --cluster-token-file with the same content, or certificates of one authority"

// judge says what is wrong with a chain that the other end shows, or nil.
func judge(chain []*x509.Certificate, c Credentials, now time.Time, use x509.ExtKeyUsage) *Refusal {
	if len(chain) == 0 {
		return Refuse(NoCertificate, "no certificate was shown: only nodes of the cluster can connect here, with its token or a certificate; other programs use the public port")
	}
	pool := x509.NewCertPool()
	for _, cert := range chain[1:] {
		pool.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: c.Roots(), Intermediates: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}})
	if err == nil {
		return nil
	}
	return blame(err, chain[0], c.Name(), now)
}

func blame(err error, leaf *x509.Certificate, ours string, now time.Time) *Refusal {
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return Refuse(ExpiredCertificate, "the certificate of %s is valid from %s to %s, and the clock of who checks it says %s: set the clocks of both machines; if they are right, renew the file that --tls-cert names",
			leaf.Subject.CommonName, leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format("2006-01-02T15:04Z")) // to the minute: the same text is logged once
	}
	if theirs := nameOf(leaf); theirs != ours {
		return refuseToken(theirs, ours)
	}
	return Refuse(ForeignCertificate, "the certificate of %s is signed by %s, which is not the authority that is trusted here (%v): %s", leaf.Subject.CommonName, leaf.Issuer.CommonName, err, sameToken)
}

func refuseToken(theirs, ours string) *Refusal {
	return Refuse(WrongToken, "the two nodes do not have the same token: one uses %s, the other %s: %s", sayName(theirs), sayName(ours), sameToken)
}

// attempt is what is known of a handshake that was asked for, before it is known how it ends.
type attempt struct {
	name string // Credentials.Name of who dials
	old  bool   // does not speak TLS 1.3
	odd  bool   // offers no protocol that is spoken here
}

// refusedAccept says why a handshake that another end began has failed. It returns nil if it was just cut off.
func refusedAccept(err error, a attempt, ours string, now time.Time) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && len(e.UnverifiedCertificates) > 0 {
		return blame(err, e.UnverifiedCertificates[0], ours, now)
	}
	var notTLS tls.RecordHeaderError
	switch {
	case a.old, errors.As(err, &notTLS):
		return Refuse(OldTLS, "the other end does not speak TLS 1.3: this is the port for the nodes of the cluster; other programs use the public port")
	case a.odd:
		return Refuse(WrongProtocol, "the other end speaks none of the protocols of this port: it is no node, or one of a version too different")
	case isAlert(err, alertBadCertificate, alertExpired, alertUnknown, alertUnknownCA):
		if a.name != ours && a.name != "" {
			return refuseToken(a.name, ours)
		}
		return Refuse(ForeignCertificate, "the dialing node does not accept this node's certificate, its log says why: %s; and set the clocks of both machines", sameToken)
	}
	return nil
}

// refusedDial says why the end at addr broke off, or returns err if it did not say.
func refusedDial(err error, addr string, leaf *x509.Certificate, now time.Time) error {
	if _, ok := errors.AsType[*Refusal](err); ok {
		return err
	}
	var r *Refusal
	switch {
	case isAlert(err, alertExpired) && leaf != nil:
		r = blame(x509.CertificateInvalidError{Cert: leaf, Reason: x509.Expired}, leaf, "", now)
	case isAlert(err, alertUnknownCA, alertBadCertificate, alertUnknown):
		r = Refuse(ForeignCertificate, "it does not accept this node's certificate (%v), its log says why: %s", err, sameToken)
	case isAlert(err, alertNoCertificate):
		r = Refuse(NoCertificate, "it wants a certificate, and this node has shown none")
	case isAlert(err, alertProtocolVersion):
		r = Refuse(OldTLS, "it does not speak TLS 1.3: is this the address of another node's --peer-listen?")
	case isAlert(err, alertNoProtocol, alertHandshakeFailure):
		r = Refuse(WrongProtocol, "it speaks none of the protocols that nodes speak: is this the address of another node's --peer-listen, and of a fitting version?")
	default:
		var notTLS tls.RecordHeaderError
		if !errors.As(err, &notTLS) {
			return err
		}
		r = Refuse(OldTLS, "it does not speak TLS: is this the address of another node's --peer-listen, or of its public port?")
	}
	r.By = addr
	return r
}
