"""The tables of a game's database, and their version."""

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA = 1  # grows with every change of the tables

metadata = MetaData()
study = Table(
    "study", metadata,
    Column("schema", Integer, primary_key=True),
    Column("secret", LargeBinary, nullable=False),  # key of the HMAC of recruiters' ids
    Column("created", Float, nullable=False),
)  # fmt: skip
image = Table(
    "image", metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(8), nullable=False),  # play, practice or catch
    Column("path", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("digest", String(64), nullable=False),  # of the file's content
    Column("people", Integer, nullable=False),  # how many are to play it before others come first
    Column("checked_by", String(64)),  # a digest of the network and its settings, or admin
    Column("excluded", Text),  # why it is not played; NULL where it is
    UniqueConstraint("kind", "path"),
)  # fmt: skip
recruit = Table(
    "recruit", metadata,
    Column("id", Integer, primary_key=True),
    Column("hashed", String(64), nullable=False, unique=True),
)  # fmt: skip
participant = Table(
    "participant", metadata,
    Column("code", String(16), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("consent_hash", String(64), nullable=False),
    Column("joined", Float, nullable=False),
    Column("recruit", ForeignKey("recruit.id"), index=True),
    Column("excluded", Text),  # why no round counts; NULL where they do
)  # fmt: skip
round_ = Table(
    "round", metadata,
    Column("id", String(32), primary_key=True),
    Column("image", ForeignKey("image.id"), nullable=False),
    Column("participant", ForeignKey("participant.code"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("untimed", Boolean, nullable=False),
    Column("started", Float, nullable=False),
    Column("expires", Float, nullable=False),  # until when an open round counts as a claim
    Column("recognised_n", Integer),
    Column("recognised_points", Text),
    Column("finished", Float),
    Column("outcome", String(16)),
    Column("points", Text),
    Column("score", Float),
    Column("total", Float),  # the player's, with this round
    Column("body_hash", String(64)),  # of the request that finished it
    Column("pointer", String(16)),
    Column("ratio", Float),
    Column("screen_width", Integer),
    Column("screen_height", Integer),
    UniqueConstraint("image", "participant", "attempt"),
)  # fmt: skip
Index("round_finished", round_.c.finished)
admin = Table(
    "admin", metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("created", Float, nullable=False),
)  # fmt: skip
