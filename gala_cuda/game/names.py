"""Random codes and names of players, which say nothing of who they are."""

import secrets

_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without those that are taken for others
_ADJECTIVES = tuple(
    """
    amber bold brave bright brisk calm clear clever coral cosy crisp dapper eager early fair fleet fond free fresh
    gentle glad golden grand green happy hardy humble jolly keen kind lively lucky mellow merry mild misty neat
    noble olive patient plucky polite proud quick quiet rapid ready rosy rustic sandy silent silver smooth snowy
    sunny swift tidy tiny vivid warm wild wise witty young
    """.split()  # noqa: SIM905 - words are read more easily than a list of strings
)
_ANIMALS = tuple(
    """
    badger beaver bison bunting crane cricket curlew deer dolphin dove eagle egret falcon ferret finch fox gecko
    gibbon goose hare hawk hedgehog heron ibex ibis jackdaw jay kestrel kingfisher kiwi koala lark lemur linnet
    lizard lynx magpie marmot marten mole moth newt ocelot orca osprey otter owl panda pelican plover puffin quail
    raven robin salmon seal sparrow squirrel stork swallow swan tern thrush wren
    """.split()  # noqa: SIM905 - words are read more easily than a list of strings
)


def code() -> str:
    """A participant's code, of 49 random bits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(10))


def name() -> str:
    """Two words, as in "quiet otter"; several players may have the same."""
    return f"{secrets.choice(_ADJECTIVES)} {secrets.choice(_ANIMALS)}"
