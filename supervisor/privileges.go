package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/internal/sys"
	"golang.org/x/sys/unix"
)

// restrain decides who the workers are, and takes all privileges from the thread
// that starts them: they never have any. The rest, which only who serves can do
// without, they give up themselves. The parent-death signal to another user's
// process needs CAP_KILL.
func (m *Master) restrain(u *config.User) error {
	credential, err := credentialOf(u)
	if err != nil {
		return err
	}
	var keep []int
	switch own := os.Geteuid(); {
	case credential == nil:
	case own == 0:
		keep = []int{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL}
	case int(credential.Uid) == own && int(credential.Gid) == os.Getegid():
		credential = nil
	default:
		return u.Refuse(fmt.Sprintf("only root can start workers as %s; this is user %d, group %d", u, own, os.Getegid()))
	}
	// Without CAP_IPC_LOCK a ring's memory counts.
	if err := sys.RaiseLockLimit(); err != nil {
		m.log.Warn("locked memory", "err", err)
	}
	return m.spawner.restrain(credential, keep...)
}

// restrain makes the children be somebody else, unless credential is nil, and
// takes all capabilities but keep from the thread that starts them.
func (s *spawner) restrain(credential *syscall.Credential, keep ...int) error {
	done := make(chan error)
	s.jobs <- func() {
		s.credential = credential
		done <- sys.ConfineThread(keep...)
	}
	return <-done
}

// explain says what starting a process as another user may have failed of.
func (s *spawner) explain(err error) error {
	path, pathErr := os.Executable()
	if pathErr != nil {
		path = "the program's file"
	}
	if errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("start of a worker as user %d, group %d: %w: %s must be executable for them",
			s.credential.Uid, s.credential.Gid, err, path)
	}
	return fmt.Errorf("start of a worker as user %d, group %d: %w", s.credential.Uid, s.credential.Gid, err)
}

// credentialOf finds a user with its groups; nil for the zero User. What is not
// a number must exist.
func credentialOf(u *config.User) (*syscall.Credential, error) {
	if u.Name == "" {
		return nil, nil
	}
	c := &syscall.Credential{}
	entry, err := user.Lookup(u.Name)
	uid, number := idOf(u.Name)
	if err != nil && number {
		entry, err = user.LookupId(u.Name)
	}
	switch {
	case err == nil:
		if err := setIDs(c, entry); err != nil {
			return nil, u.Refuse(err.Error())
		}
	case number && u.Group != "":
		c.Uid = uid
	case number:
		return nil, u.Refuse(fmt.Sprintf("nothing tells the group of user %s: write %q", u.Name, u.Name+":GROUP"))
	default:
		return nil, u.Refuse(fmt.Sprintf("there is no user %q", u.Name))
	}
	if u.Group != "" {
		gid, err := groupID(u.Group)
		if err != nil {
			return nil, u.Refuse(err.Error())
		}
		c.Gid = uint32(gid)
	}
	return c, nil
}

// setIDs sets c to a user with all its groups.
func setIDs(c *syscall.Credential, entry *user.User) error {
	names, err := entry.GroupIds()
	if err != nil {
		return err
	}
	var okUser, okGroup bool
	c.Uid, okUser = idOf(entry.Uid)
	c.Gid, okGroup = idOf(entry.Gid)
	if !okUser || !okGroup {
		return fmt.Errorf("%s has the numbers %s and %s", entry.Username, entry.Uid, entry.Gid)
	}
	for _, name := range names {
		if n, ok := idOf(name); ok {
			c.Groups = append(c.Groups, n)
		}
	}
	return nil
}

// idOf is the number that s writes. The greatest means "no change" to the
// kernel and is none.
func idOf(s string) (id uint32, ok bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && uint32(n) != ^uint32(0)
}
