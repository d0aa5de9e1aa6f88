"""The persistent dirty bitmaps of a qcow2 image, read without any of the programs."""
import struct

AUTOCLEAR = 88


class Directory:
    """The bitmaps of the image of that name, in the order of the directory."""

    def __init__(self, t, image):
        self.data = t.read(image)
        self.cluster = 1 << struct.unpack_from(">I", self.data, 20)[0]
        self.size = struct.unpack_from(">Q", self.data, 24)[0]
        self.bitmaps, self.order = {}, []
        self.extension = self.find_extension()
        self.bit = struct.unpack_from(">Q", self.data, AUTOCLEAR)[0] & 1
        if self.extension is None or not self.bit:
            return
        self.count, _, self.length, self.offset = struct.unpack_from(">IIQQ", self.data, self.extension)
        at = self.offset
        while at < self.offset + self.length:
            table, entries, flags, kind, granularity, name_size, extra = struct.unpack_from(
                ">QIIBBHI", self.data, at)
            name = self.data[at + 24:at + 24 + name_size].decode()
            self.bitmaps[name] = (at, table, entries, flags, granularity)
            self.order.append(name)
            at += (24 + name_size + 7) // 8 * 8

    def find_extension(self):
        at = struct.unpack_from(">I", self.data, 100)[0]
        while True:
            kind, length = struct.unpack_from(">II", self.data, at)
            if kind == 0:
                return None
            if kind == 0x23852875:
                return at + 8
            at += 8 + (length + 7) // 8 * 8

    def flags(self, name):
        return self.bitmaps[name][3]

    def bytes(self, name):
        _, table, entries, _, granularity = self.bitmaps[name]
        out = b""
        for entry in struct.unpack_from(f">{entries}Q", self.data, table):
            offset = entry & 0x00fffffffffffe00
            fill = b"\xff" if entry & 1 else b"\0"
            out += self.data[offset:offset + self.cluster] if offset else fill * self.cluster
        bits = -(-self.size >> granularity)
        return out[:(bits + 7) // 8]

    def granules(self, name):
        data = self.bytes(name)
        return [i for i in range(len(data) * 8) if data[i // 8] >> i % 8 & 1]

    def extents(self, name):
        """Dirty stretches as (start, length), clipped at the end of the disk."""
        unit, result = 1 << self.bitmaps[name][4], []
        for i in self.granules(name):
            if result and sum(result[-1]) == i * unit:
                result[-1][1] += unit
            else:
                result.append([i * unit, unit])
        return [(start, min(length, self.size - start)) for start, length in result]

    def summary(self):
        return {name: (self.flags(name), self.bitmaps[name][4], None if self.flags(name) & 1 else self.bytes(name))
                for name in self.order}
