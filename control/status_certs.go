package control

import (
	"net/http"
	"time"
)

// Certificate is one that clients or backends are shown: an element of the
// answer to GET /v1/certs.
type Certificate struct {
	File      string    `json:"file"`
	Names     []string  `json:"names"` // that it is for
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	DaysLeft  int       `json:"days_left"` // whole ones; negative once it has expired
	Listeners []string  `json:"listeners"` // addresses whose clients are shown it
	Backends  []string  `json:"backends"`  // that it is shown to
	// Refused is why the file's new content, or its key's, is not in use:
	// what is told here is the content before.
	Refused string `json:"refused,omitempty"`
}

// RefusedFile is a file that has changed and cannot be used as it is now. What
// was read before stays in use.
type RefusedFile struct {
	File  string    `json:"file"` // a certificate, which stands for its key, too, or authorities
	Cause string    `json:"cause"`
	Since time.Time `json:"since"`
}

// Certificates asks for the certificates of the configuration in force.
func (c *Client) Certificates() (list []Certificate, err error) {
	err = c.do(http.MethodGet, "/v1/certs", nil, &list)
	return list, err
}
