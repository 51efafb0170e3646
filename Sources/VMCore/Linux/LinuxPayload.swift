import CLZ4
import CZstd

/// Takes the kernel out of a bzImage: what the image would unpack itself when it boots.
///
/// Source: Linux, Documentation/arch/x86/boot.rst, fields setup_sects, boot_flag, header, version, payload_offset and
/// payload_length; scripts/Makefile.lib for the uncompressed size that follows the payload.
public enum LinuxPayload {
    private enum Header {
        static let setupSectors = 0x1F1
        static let bootFlag = 0x1FE
        static let magic = 0x202
        static let version = 0x206
        static let payloadOffset = 0x248
        static let payloadLength = 0x24C
    }

    /// The first version of the protocol that says where the payload is.
    private static let firstVersion: UInt16 = 0x208
    /// A stripped distribution kernel has some 50 MiB.
    private static let largest = 1 << 29
    /// No compression in use packs a kernel tighter.
    private static let tightest = 256

    public static func isBzImage(_ file: [UInt8]) -> Bool {
        let reader = ImageReader(bytes: file)
        return reader.load(Header.bootFlag, as: UInt16.self) == 0xAA55
            && reader.slice(UInt64(Header.magic), 4)?.elementsEqual("HdrS".utf8) == true
    }

    /// Whether a bzImage's kernel is compressed in a way that is understood, and yet can't be unpacked.
    static func isDamaged(_ file: [UInt8]) -> Bool {
        guard isBzImage(file), let payload = try? payload(of: ImageReader(bytes: file)),
            (try? Compression(payload)) != nil
        else { return false }
        return (try? kernel(in: file)) == nil
    }

    /// The kernel in a bzImage, an ELF file. A file that is one itself is returned as it is.
    public static func kernel(in file: [UInt8]) throws(BootError) -> [UInt8] {
        if file.starts(with: ELFImage.magic) { return file }
        guard isBzImage(file) else { throw .badImage("neither a bzImage nor an ELF file") }
        let payload = try payload(of: ImageReader(bytes: file))
        if payload.starts(with: ELFImage.magic) { return Array(payload) }
        let compression = try Compression(payload)
        guard payload.count > 8, let stated = ImageReader(bytes: Array(payload.suffix(4))).load(0, as: UInt32.self) else {
            throw .badImage("its compressed kernel is cut off")
        }
        let size = Int(stated)
        guard size <= largest, size / tightest <= payload.count else {
            throw .badImage("its kernel claims to unpack to \(size) bytes")
        }
        let content = payload.dropLast(4)
        let kernel =
            switch compression {
            case .lz4: try unpackLZ4(content, size: size)
            case .zstd: try unpackZstd(content, size: size)
            }
        guard kernel.starts(with: ELFImage.magic) else { throw .badImage("what it unpacks to isn't an ELF file") }
        return kernel
    }

    private static func payload(of file: ImageReader) throws(BootError) -> ArraySlice<UInt8> {
        guard let version = file.load(Header.version, as: UInt16.self), version >= firstVersion,
            let sectors = file.load(Header.setupSectors, as: UInt8.self),
            let offset = file.load(Header.payloadOffset, as: UInt32.self),
            let length = file.load(Header.payloadLength, as: UInt32.self)
        else { throw .badImage("its boot protocol is older than 2.08, which doesn't say where the kernel is") }
        // Zero stands for four, for reasons of the 1990s.
        let start = (UInt64(sectors == 0 ? 4 : sectors) + 1) * 512 + UInt64(offset)
        guard let payload = file.slice(start, UInt64(length)) else {
            throw .badImage("its kernel lies beyond the end of the file")
        }
        return payload
    }

    private enum Compression {
        case lz4, zstd

        // Source: Linux, lib/decompress.c.
        private static let others: [(magic: [UInt8], name: String)] = [
            ([0x1F, 0x8B], "gzip"), ([0xFD, 0x37, 0x7A], "xz"), ([0x5D, 0x00, 0x00], "lzma"), ([0x42, 0x5A, 0x68], "bzip2"),
            ([0x89, 0x4C, 0x5A, 0x4F], "lzo"),
        ]

        init(_ payload: ArraySlice<UInt8>) throws(BootError) {
            if payload.starts(with: lz4Magic.bytes) {
                self = .lz4
            } else if payload.starts(with: [0x28, 0xB5, 0x2F, 0xFD]) {
                self = .zstd
            } else if let other = Self.others.first(where: { payload.starts(with: $0.magic) }) {
                throw .badImage("its kernel is compressed with \(other.name); LZ4 and zstd are understood, and an "
                    + "unpacked vmlinux")
            } else {
                throw .badImage("its kernel is compressed in an unknown way")
            }
        }
    }

    // MARK: LZ4

    /// Source: LZ4 Frame Format Description, "Legacy frame".
    private static let lz4Magic: UInt32 = 0x184C_2102
    private static let lz4BlockSize = 8 << 20

    private static func unpackLZ4(_ payload: ArraySlice<UInt8>, size: Int) throws(BootError) -> [UInt8] {
        var isGood = true
        let kernel = [UInt8](unsafeUninitializedCapacity: max(size, 1)) { buffer, count in
            payload.withUnsafeBytes { source in
                var at = 4
                while count < size {
                    guard at + 4 <= source.count else { break }
                    let length = Int(UInt32(littleEndian: source.loadUnaligned(fromByteOffset: at, as: UInt32.self)))
                    at += 4
                    if length == Int(lz4Magic) { continue }  // Another frame follows.
                    guard length > 0, length <= source.count - at else { break }
                    // Both lengths are bounded, above and here: the library keeps within them.
                    let written = LZ4_decompress_safe(
                        source.baseAddress! .advanced(by: at).assumingMemoryBound(to: CChar.self),
                        UnsafeMutableRawPointer(buffer.baseAddress!).advanced(by: count).assumingMemoryBound(to: CChar.self),
                        Int32(length), Int32(min(lz4BlockSize, size - count)))
                    guard written > 0 else { break }
                    count += Int(written)
                    at += length
                }
            }
            isGood = count == size
        }
        guard isGood else { throw .badImage("its compressed kernel is damaged") }
        return kernel
    }

    // MARK: zstd

    private static func unpackZstd(_ payload: ArraySlice<UInt8>, size: Int) throws(BootError) -> [UInt8] {
        var isGood = true
        let kernel = [UInt8](unsafeUninitializedCapacity: max(size, 1)) { buffer, count in
            let written = payload.withUnsafeBytes {
                ZSTD_decompress(buffer.baseAddress, size, $0.baseAddress, $0.count)
            }
            isGood = ZSTD_isError(written) == 0 && written == size
            count = isGood ? size : 0
        }
        guard isGood else { throw .badImage("its compressed kernel is damaged") }
        return kernel
    }
}
