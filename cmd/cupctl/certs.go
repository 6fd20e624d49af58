package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
)

// certs shows the certificates of the configuration in force.
func (c *command) certs() error {
	list, err := c.client().Certificates()
	return show(c, list, err, c.screen.certs)
}

func (s *screen) certs(list []control.Certificate) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(s.out, "no certificates")
		return err
	}
	var rows [][]string
	for i := range list {
		c := &list[i]
		rows = append(rows, []string{
			c.File, strings.Join(c.Names, ", "), c.Issuer, c.NotAfter.UTC().Format(time.RFC3339), fmt.Sprint(c.DaysLeft),
			strings.Join(slices.Concat(c.Listeners, c.Backends), ", "),
		})
	}
	if err := s.table([]string{"FILE", "NAMES", "ISSUER", "VALID UNTIL", "DAYS", "SHOWN TO"}, rows); err != nil {
		return err
	}
	for i := range list {
		if c := &list[i]; c.Refused != "" {
			if err := s.text(c.File+": ", "  ", "its new content is not in use: "+c.Refused); err != nil {
				return err
			}
		}
	}
	return nil
}
