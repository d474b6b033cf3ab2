package paas

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Lengths of contract section 16, in characters.
const (
	MaxAppID    = 64
	MaxUsername = 30
	MaxKeyID    = 128
	MaxImage    = 256
	MaxSHA      = 40
	MaxDomain   = 255
	maxHost     = 253 // what DNS really allows (RFC 1035, 2.3.4)
	MaxName     = 30
	MaxEmail    = 75
)

// Messages that clients compare (contract 2.3).
const (
	MsgRequired = "This field is required."
	MsgBlank    = "This field may not be blank."
	MsgNull     = "This field may not be null."
	MsgUnique   = "This field must be unique."
	// MsgNullCharacter is ours: no process can be given such a text.
	MsgNullCharacter = "Null characters are not allowed."
)

var (
	appIDPattern       = regexp.MustCompile(`^[a-z0-9-]+$`)
	slugPattern        = regexp.MustCompile(`^[-a-zA-Z0-9_]+$`)
	usernamePattern    = regexp.MustCompile(`^[\w.@+-]+$`)
	emailPattern       = regexp.MustCompile(`^[^@\s]+@([^@\s.]+(\.[^@\s.]+)+|localhost)$`)
	processTypePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)
	domainLabel        = regexp.MustCompile(`^[A-Za-z0-9-]{1,63}$`)
	allDigits          = regexp.MustCompile(`^[0-9]+$`)
	anyDigit           = regexp.MustCompile(`[0-9]`)
	platformImage      = regexp.MustCompile(`deis/(builder|cache|controller|database|logger|logspout|publisher|registry|` +
		`router|store-admin|store-daemon|store-gateway|store-metadata|store-monitor)`)
)

// MsgTooLong is the message for a text of more than max characters.
func MsgTooLong(max int) string {
	return fmt.Sprintf("Ensure this field has no more than %d characters.", max)
}

// CheckLength returns the message for a text that is too long, or nothing.
func CheckLength(s string, max int) []string {
	if utf8.RuneCountInString(s) > max {
		return []string{MsgTooLong(max)}
	}
	return nil
}

// CheckAppID returns what is wrong with an app's id (contract 5.1), in the
// order in which the messages are shown.
func CheckAppID(id string, reserved ...string) []string {
	var faults []string
	if !appIDPattern.MatchString(id) {
		faults = append(faults, "App IDs can only contain [a-z0-9-].")
	}
	if slices.Contains(reserved, id) {
		faults = append(faults, MsgReserved(id))
	}
	faults = append(faults, CheckLength(id, MaxAppID)...)
	if !slugPattern.MatchString(id) {
		faults = append(faults, "Enter a valid 'slug' consisting of letters, numbers, underscores or hyphens.")
	}
	return faults
}

// MsgReserved is the message for a name that the platform keeps for itself.
func MsgReserved(name string) string { return name + " is a reserved name." }

// CheckUsername returns what is wrong with a new user's name (contract 3.1).
func CheckUsername(name string) []string {
	var faults []string
	if !usernamePattern.MatchString(name) {
		faults = append(faults, "Enter a valid username.")
	}
	return append(faults, CheckLength(name, MaxUsername)...)
}

// CheckEmail returns what is wrong with an address; an empty one is fine.
func CheckEmail(email string) []string {
	faults := CheckLength(email, MaxEmail)
	if email != "" && !emailPattern.MatchString(email) {
		faults = append(faults, "Enter a valid email address.")
	}
	return faults
}

// CheckProcfile returns what is wrong with process types. Their names end up in
// names of instances and files, so they are letters, digits, _ and -.
func CheckProcfile(procfile map[string]string) []string {
	for processType, command := range procfile {
		if !processTypePattern.MatchString(processType) {
			return []string{"Process types can only contain [A-Za-z0-9_-]"}
		}
		if hasNull(command) {
			return []string{MsgNullCharacter}
		}
	}
	return nil
}

// hasNull reports whether a text cannot be an argument or a variable of a
// process.
func hasNull(text string) bool { return strings.Contains(text, "\x00") }

// CheckImage refuses the names of the platform's own parts (contract 5.3), and
// the images that were made here for another app.
func CheckImage(b Build, app App) error {
	foreign := strings.HasPrefix(strings.ToLower(strings.TrimSpace(b.Image)), LocalImages) && !b.madeFor(app)
	if foreign || platformImage.MatchString(b.Image) {
		return Errorf(Forbidden, "Repository name %s is not allowed", b.Image)
	}
	return nil
}

// NormalizeDomain returns the host that a custom domain means, in lower case and
// without the final dot, and what is wrong with it (contract 5.9). Names that
// the platform itself gives, platformDomain and those one level below it, are
// refused, as a later app could own them.
func NormalizeDomain(name, platformDomain string) (string, []string) {
	if faults := tooLongHost(name); faults != nil {
		return "", faults
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	labels := strings.Split(name, ".")
	if labels[0] == "*" {
		return "", []string{"Adding a wildcard subdomain is currently not supported."}
	}
	if len(name) > maxHost || !validLabels(labels, strings.Contains(name, "xip.io")) {
		return "", []string{"Hostname does not look valid."}
	}
	if _, parent, _ := strings.Cut(name, "."); name == platformDomain || parent == platformDomain {
		return "", []string{MsgReserved(name)}
	}
	return name, nil
}

func tooLongHost(name string) []string {
	if utf8.RuneCountInString(name) > MaxDomain {
		return []string{fmt.Sprintf("Hostname must be %d characters or less.", MaxDomain)}
	}
	return nil
}

// validLabels checks the labels of a host name. Names of xip.io hold an address.
func validLabels(labels []string, address bool) bool {
	if len(labels) == 1 && anyDigit.MatchString(labels[0]) {
		return false
	}
	for _, l := range labels {
		if !domainLabel.MatchString(l) || !address && allDigits.MatchString(l) || strings.Contains(l, "--") ||
			strings.HasPrefix(l, "-") || strings.HasSuffix(l, "-") {
			return false
		}
	}
	return true
}

// GenerateAppID returns a random name of six letters, a dash and eight letters
// (contract 5.1). The caller tries again when it is taken.
func GenerateAppID() string {
	return adjectives[rand.IntN(len(adjectives))] + "-" + nouns[rand.IntN(len(nouns))]
}

var adjectives = strings.Fields(`
	active agreed amused annual astral atomic august autumn benign better bitter blithe bouncy breezy
	bright bronze candid casual cheery chosen classy clever coarse copper cosmic creamy dainty daring
	decent direct divine docile double eighth elated exotic expert famous fierce floral fluent flying
	formal fourth frosty frozen garlic gentle gifted glassy global golden grassy hearty heroic honest
	humble hushed iconic jagged jaunty joyful kindly lawful likely liquid lively lovely mellow mighty
	modern modest mutual narrow native nimble normal oblong orange polite pretty prompt proper proven
	purple quaint ripple rising robust rugged rustic sacred serene silent silver simple sleepy smooth
	snappy social square stable steady sturdy subtle sunlit superb supple tender tinted trusty tufted
	twelve unique united upbeat urbane useful valued velvet verbal vernal viable violet warmer wintry
	wooded woolen worthy yellow yonder zigzag`)

var nouns = strings.Fields(`
	airplane alphabet antelope aquarium armchair backpack bandanna barnacle baseball bassinet birdcage
	blizzard bluebell boundary bracelet broccoli building bungalow calendar campfire carousel chestnut
	chipmunk cinnamon concerto corridor crescent crossbow cucumber cupboard cylinder daffodil daylight
	dinosaur doorbell doughnut dumpling eggplant elephant envelope festival fireball fireside flamingo
	footpath fountain fragment fruition galaxies gardener geometry glassful goldfish graphite handbook
	harmonic harvests hazelnut headband heirloom hibiscus highland homeland honeybee hydrogen icebreak
	interval jamboree jewelbox keepsake keyboard kilowatt knapsack ladybird landmark lavender lemonade
	limerick lollipop macaroni magnolia mandolin marigold mattress memories midnight minstrel molecule
	mongoose mountain mushroom mustache namesake notebook obsidian omelette orchards original ornament
	overpass overture paradigm parakeet passport pavement pendulum pinecone platinum platypus polygons
	porridge postcard practice prologue puppetry quadrant quantity quotient raindrop rainfall reindeer
	riverbed sailboat sandwich sapphire scaffold seashell sequence shamrock sidewalk skylight snowball
	snowfall songbird spaceman spinning splendor squirrel starfish starship sunlight sunshine swimming
	symphony tapestry teaspoon terminal thousand treasure triangle tropical umbrella universe upstairs
	vineyard volcanic waffling wanderer wardrobe waterway windmill woodland workshop yearbook zeppelin`)
