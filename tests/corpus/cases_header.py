"""Header fields: at 0, 1, the maximum, off by one, misaligned, past the end of the file, above 2^56, 2^63."""

from __future__ import annotations

from .case import HostileCase, either, error, opens
from .patch import Edit, cluster_size, field, get, l1, patched, put, put_u64, set_bits, to

U32, U64 = 2**32 - 1, 2**64 - 1


def l1_equal_to(name: str) -> Edit:
    """Put the L1 table where another header field points."""
    return lambda image: field("l1_table_offset", get(image, name))(image)


def table_equal_to_l1(image: bytearray) -> None:
    field("refcount_table_offset", get(image, "l1_table_offset"))(image)


def l1_to_itself(image: bytearray) -> None:
    l1(0, to(get(image, "l1_table_offset")))(image)


def l1_at_last_cluster(image: bytearray) -> None:
    field("l1_table_offset", len(image) // cluster_size(image) * cluster_size(image))(image)


def longer_header(length: int) -> Edit:
    """Give a header length without moving anything: what lies there becomes unknown header fields."""
    return field("header_length", length)


def no_extensions(image: bytearray) -> None:
    end = get(image, "header_length")
    image[end : cluster_size(image)] = bytes(cluster_size(image) - end)


VERSIONS = [
    error("magic-one-bit-wrong", "v3", field("magic", 0x514649FA)),
    *(error(f"version-{value}", "v3", field("version", value)) for value in (0, 1, 4, U32)),
    opens("v3-said-to-be-v2", "v3", field("version", 2)),
    error("v2-said-to-be-v3", "v2", field("version", 3)),
    opens("v2-with-garbage-after-header", "v2", put(72, bytes(8) + b"\xff" * 200)),
    error("v2-with-endless-extension-after-header", "v2", put(72, b"\xff" * 64)),
]

CLUSTER_BITS = [
    *(error(f"cluster-bits-{bits}", "v3", field("cluster_bits", bits)) for bits in (0, 8, 22, 31, 32, 63, U32)),
    *(either(f"cluster-bits-{bits}-instead-of-12", "v3", field("cluster_bits", bits)) for bits in (9, 21)),
]

SIZES = [
    *(opens(f"size-{size}", "v3", field("size", size)) for size in (0, 1, 511, 513, 8 * 2**20 - 1)),
    *(
        error(f"size-{label}", "v3", field("size", size))
        for label, size in (
            ("one-past-l1", 8 * 2**20 + 1),
            ("2^56", 2**56),
            ("2^63-1", 2**63 - 1),
            ("2^63", 2**63),
            ("2^64-1", U64),
        )
    ),
]

CRYPT = [
    either("crypt-aes-without-key", "v3", field("crypt_method", 1)),
    either("crypt-luks-without-header", "v3", field("crypt_method", 2)),
    error("crypt-3", "v3", field("crypt_method", 3)),
    error("crypt-max", "v3", field("crypt_method", U32)),
]

L1_TABLE = [
    *(error(f"l1-entries-{entries}", "v3", field("l1_size", entries)) for entries in (0, 3, 4194305, U32)),
    either("l1-entries-one-more", "v3", field("l1_size", 5)),
    either("l1-entries-4194304-past-eof", "v3", field("l1_size", 4194304)),
    *(
        error(f"l1-offset-{label}", "v3", field("l1_table_offset", offset))
        for label, offset in (("1", 1), ("misaligned", 0x3200), ("2^63", 2**63), ("2^64-4096", 2**64 - 4096))
    ),
    either("l1-offset-0-is-the-header", "v3", field("l1_table_offset", 0)),
    either("l1-offset-past-eof", "v3", field("l1_table_offset", 2**32)),
    either("l1-offset-at-last-cluster", "v3", l1_at_last_cluster),
    either("l1-offset-2^56", "v3", field("l1_table_offset", 2**56)),
    either("l1-is-the-refcount-table", "v3", l1_equal_to("refcount_table_offset")),
    either("l1-entry-names-the-l1", "v3", l1_to_itself),
]

REFCOUNT_TABLE = [
    *(
        error(f"refcount-table-offset-{label}", "v3", field("refcount_table_offset", offset))
        for label, offset in (("1", 1), ("misaligned", 0x1200), ("2^63", 2**63), ("2^64-4096", 2**64 - 4096))
    ),
    either("refcount-table-offset-0-is-the-header", "v3", field("refcount_table_offset", 0)),
    either("refcount-table-past-eof", "v3", field("refcount_table_offset", 2**32)),
    either("refcount-table-at-2^56", "v3", field("refcount_table_offset", 2**56)),
    either("refcount-table-is-the-l1", "v3", table_equal_to_l1),
    HostileCase("refcount-table-clusters-0", patched("v3", field("refcount_table_clusters", 0)), expect="error"),
    error("refcount-table-clusters-2049", "v3", field("refcount_table_clusters", 2049)),
    error("refcount-table-clusters-max", "v3", field("refcount_table_clusters", U32)),
    either("refcount-table-clusters-2048", "v3", field("refcount_table_clusters", 2048)),
    *(error(f"refcount-order-{order}", "v3", field("refcount_order", order)) for order in (7, 63, 2**31, U32)),
    *(either(f"refcount-order-{order}-instead-of-4", "v3", field("refcount_order", order)) for order in (0, 6)),
]

FEATURES = [
    *(error(f"incompatible-bit-{bit}", "v3", set_bits("incompatible", 1 << bit)) for bit in (5, 63)),
    error("incompatible-all", "v3", field("incompatible", U64)),
    opens("dirty-bit", "v3", set_bits("incompatible", 1)),
    opens("corrupt-bit", "v3", set_bits("incompatible", 2)),
    either("data-file-bit-without-data-file", "v3", set_bits("incompatible", 4)),
    error("extended-l2-bit-in-4k-clusters", "v3", set_bits("incompatible", 16)),
    opens("compatible-all", "v3", field("compatible", U64), check="clean"),
    opens("autoclear-unknown", "v3", field("autoclear", U64 ^ 3), check="clean"),
    either("autoclear-bitmaps-without-extension", "v3", set_bits("autoclear", 1)),
    either("autoclear-raw-data-without-data-file", "v3", set_bits("autoclear", 2)),
    error("compression-bit-with-type-0", "v3", set_bits("incompatible", 8)),
    error("compression-type-1-without-bit", "v3", field("compression_type", 1)),
    error("compression-type-2-with-bit", "v3", set_bits("incompatible", 8), field("compression_type", 2)),
    error("compression-type-255-with-bit", "v3", set_bits("incompatible", 8), field("compression_type", 255)),
    opens("compression-bit-and-zstd", "v3", set_bits("incompatible", 8), field("compression_type", 1)),
    error("zstd-image-without-bit", "zstd", field("incompatible", 0)),
    either("zlib-image-said-to-be-zstd", "zlib", set_bits("incompatible", 8), field("compression_type", 1)),
    either("zstd-image-said-to-be-zlib", "zstd", field("incompatible", 0), field("compression_type", 0)),
]

HEADER_LENGTH = [
    *(error(f"header-length-{length}", "v3", longer_header(length)) for length in (0, 1, 72, 103, 4097, 4104, U32)),
    *(
        either(f"header-length-{length}-no-multiple-of-8", "v3", no_extensions, longer_header(length))
        for length in (105, 111, 113)
    ),
    error("header-length-104-with-compression-bit", "zstd", longer_header(104)),
    opens("header-length-104", "v3", longer_header(104)),
    opens("header-length-whole-cluster", "v3", longer_header(4096)),
    either("header-length-one-extension-short-of-cluster", "v3", longer_header(4088)),
    opens("header-length-120-unknown-fields", "v3", longer_header(120), put_u64(112, U64), put(120, bytes(16))),
]

SNAPSHOT_FIELDS = [
    error("snapshots-65537", "v3", field("nb_snapshots", 65537)),
    error("snapshots-max", "v3", field("nb_snapshots", U32)),
    either("snapshots-65536-in-the-header", "v3", field("nb_snapshots", 65536)),
    either("snapshot-table-is-the-header", "v3", field("nb_snapshots", 1)),
    either("snapshots-offset-misaligned-but-unused", "v3", field("snapshots_offset", 77)),
    either("snapshots-offset-2^63-but-unused", "v3", field("snapshots_offset", 2**63)),
]

CASES: list[HostileCase] = [
    *VERSIONS,
    *CLUSTER_BITS,
    *SIZES,
    *CRYPT,
    *L1_TABLE,
    *REFCOUNT_TABLE,
    *FEATURES,
    *HEADER_LENGTH,
    *SNAPSHOT_FIELDS,
]
