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
}

// Certificates asks for the certificates of the configuration in force.
func (c *Client) Certificates() (list []Certificate, err error) {
	err = c.do(http.MethodGet, "/v1/certs", nil, &list)
	return list, err
}
