"""Words of the synthetic sample: invented, plain, and without any method or plan of harm.

Each phrase stands in three forms: of the writer (evidence), of somebody else, and denied or past (both near-misses).
"""

CRITERIA = {
    "DEPRESSED_MOOD": "Feeling sad, empty, hopeless or tearful most of the day.",
    "ANHEDONIA": "Little interest or pleasure in things once enjoyed.",
    "APPETITE_CHANGE": "Eating, appetite or weight clearly changed without dieting.",
    "SLEEP_ISSUES": "Sleeping far too little or far too much.",
    "PSYCHOMOTOR": "Restless pacing, or moving and speaking noticeably slowly.",
    "FATIGUE": "Tired and without energy nearly every day.",
    "WORTHLESSNESS": "Feeling worthless, or blaming oneself far too much.",
    "COGNITIVE_ISSUES": "Trouble thinking, concentrating or making decisions.",
    "SUICIDAL_THOUGHTS": "Thoughts of not wanting to be alive.",
}

# (the writer, somebody else, denied or past)
PHRASES = {
    "DEPRESSED_MOOD": [
        ("I feel empty inside", "my cousin feels empty inside", "I no longer feel empty inside"),
        (
            "I cry for no clear reason",
            "my neighbour cries for no clear reason",
            "I stopped crying for no clear reason",
        ),
        (
            "everything looks hopeless to me",
            "everything looks hopeless to my brother",
            "nothing looks hopeless to me now",
        ),
        (
            "a heavy sadness sits on my chest",
            "a heavy sadness sits on my friend",
            "the heavy sadness has lifted from me",
        ),
    ],
    "ANHEDONIA": [
        ("my guitar gives me no joy", "his guitar gives him no joy", "my guitar gives me joy again"),
        (
            "I lost interest in all my hobbies",
            "my roommate lost interest in all his hobbies",
            "I got back into all my hobbies",
        ),
        ("nothing is fun for me now", "nothing is fun for my sister now", "things are fun for me again"),
        (
            "I do not care about the games I loved",
            "my friend does not care about the games he loved",
            "I care about the games I loved again",
        ),
    ],
    "APPETITE_CHANGE": [
        ("I barely eat anything", "my sister barely eats anything", "I eat quite normally again"),
        ("food turns my stomach", "food turns his stomach", "food tastes good to me again"),
        (
            "I lost eight kilos without trying",
            "my uncle lost eight kilos without trying",
            "my weight has been steady all year",
        ),
        (
            "I cannot stop snacking all day",
            "my roommate cannot stop snacking all day",
            "I stopped snacking all day long",
        ),
    ],
    "SLEEP_ISSUES": [
        ("I lie awake until four", "my sister lies awake until four", "I do not lie awake until four now"),
        (
            "I wake up every night at two",
            "the baby wakes up every night at two",
            "I sleep right through every night now",
        ),
        (
            "I sleep fourteen hours and want more",
            "my brother sleeps fourteen hours and wants more",
            "I do not sleep fourteen hours any more",
        ),
        ("I cannot fall asleep", "my neighbour cannot fall asleep", "I can fall asleep without trouble"),
    ],
    "PSYCHOMOTOR": [
        (
            "I pace around the room for hours",
            "my uncle paces around the room for hours",
            "I do not pace around the room now",
        ),
        (
            "I cannot sit still for a minute",
            "the puppy cannot sit still for a minute",
            "I can sit still without a problem",
        ),
        (
            "I move as if through mud",
            "my grandfather moves as if through mud",
            "I do not move as if through mud now",
        ),
        (
            "people say I speak very slowly",
            "people say my cousin speaks very slowly",
            "people say I speak at my usual speed",
        ),
    ],
    "FATIGUE": [
        ("I am worn out before noon", "my boss is worn out before noon", "I am not worn out before noon now"),
        (
            "I have no energy left for dishes",
            "my roommate has no energy left for dishes",
            "I have energy left for dishes again",
        ),
        ("even a shower exhausts me", "even a shower exhausts my mother", "a shower wakes me up nicely"),
        ("my body feels drained all day", "her body feels drained all day", "my body feels strong all day"),
    ],
    "WORTHLESSNESS": [
        (
            "I am a burden to everyone",
            "my cousin thinks he is a burden to everyone",
            "I know I am not a burden to anyone",
        ),
        (
            "I blame myself for everything",
            "my sister blames herself for everything",
            "I stopped blaming myself for everything",
        ),
        ("I am worth nothing", "her boss told her she is worth nothing", "I know that I am worth something"),
        (
            "I feel guilty for existing",
            "my friend feels guilty for existing",
            "I do not feel guilty for existing now",
        ),
    ],
    "COGNITIVE_ISSUES": [
        (
            "I read one page ten times",
            "my nephew reads one page ten times",
            "I read one page and keep it in mind",
        ),
        (
            "I cannot concentrate on anything",
            "my colleague cannot concentrate on anything",
            "I can concentrate on my work again",
        ),
        (
            "my mind goes blank when I talk",
            "his mind goes blank when he talks",
            "my mind stays clear when I talk",
        ),
        (
            "I cannot decide what to wear",
            "my daughter cannot decide what to wear",
            "I decide quickly what to wear",
        ),
    ],
    "SUICIDAL_THOUGHTS": [
        (
            "I wish I would not wake up",
            "my friend once wished he would not wake up",
            "I do not wish to stop waking up",
        ),
        (
            "I think everyone is better off without me",
            "my cousin thinks everyone is better off without him",
            "I never think that people are better off without me",
        ),
        (
            "I do not want to be here any more",
            "my neighbour said he did not want to be here any more",
            "I am glad to be here these days",
        ),
        (
            "I often think about being gone",
            "my brother used to think about being gone",
            "I no longer think about being gone",
        ),
    ],
}

OPENINGS = [
    "",
    "Lately",
    "Most days",
    "For weeks now",
    "These days",
    "Honestly",
    "Since the spring",
    "Again and again",
]
ENDINGS = [
    "",
    "and I do not know why",
    "whatever I try",
    "and it is getting harder",
    "even on weekends",
    "as far as I can tell",
]

DISTRACTORS = [
    "The bus was late again this morning",
    "I moved to a smaller flat in the north",
    "My sister got a new job at the bakery",
    "We watched a film about whales",
    "It rained the whole weekend",
    "I am studying for an exam in chemistry",
    "The landlord finally fixed the heating",
    "My phone screen cracked last week",
    "I cooked soup for my neighbours",
    "Our dog learned a new trick",
    "The library closes early on Fridays",
    "I started a new job in an office",
    "My brother visits us every month",
    "The train tickets were cheap this time",
    "We painted the kitchen yellow",
    "I walk past the river on my way home",
    "My laptop is tired and needs a new battery",
    "The shop ran out of bread",
    "I am writing this from my parents' house",
    "A friend told me to post here",
    "Thank you for reading this far",
    "I have been in this town for two years",
    "The meeting about sleep research was long",
    "My plants grow well on the balcony",
    "The weight of the parcel was wrong",
    "We played cards until the lights went out",
    "My aunt sold her old car",
    "The concert was moved to another hall",
    "I bought a coat for the winter",
    "The coffee machine at work is slow",
    "The empty bottles are in the hall",
    "The sad song was on the radio again",
    "I am a student in my second year",
    "My cousin is hungry after every match",
    "The worthless coupon went into the bin",
    "He paces himself well in a marathon",
    "The doctor's waiting room was full",
    "I would like to hear from others",
    "Has anyone moved to another city",
    "My flatmate plays the drums",
    "The slow lift annoys the whole house",
    "We decided on a blue carpet",
]
WHEN = ["", "this year", "by the way", "last month", "as usual", "I think"]

WHY = {
    1: "The writer says this of their own present state.",
    "other": "This is said of somebody else.",
    "denied": "The writer denies it or puts it in the past.",
}
