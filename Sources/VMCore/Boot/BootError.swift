/// Why an image can't be started. `isUsage` tells a wrong option (status 64) from a bad file (status 65).
public struct BootError: Error, CustomStringConvertible {
    public var description: String
    public var isUsage: Bool

    public init(description: String, isUsage: Bool) {
        self.description = description
        self.isUsage = isUsage
    }

    public static func badImage(_ text: String) -> Self { Self(description: text, isUsage: false) }
    public static func usage(_ text: String) -> Self { Self(description: text, isUsage: true) }
}

/// A file that a boot loader passes to a kernel.
public struct BootModule: Sendable {
    public var content: [UInt8]
    /// The string that the kernel gets along with it: by custom the file's name and arguments.
    public var commandLine: String

    public init(content: [UInt8], commandLine: String) {
        self.content = content
        self.commandLine = commandLine
    }
}

/// What a loader made of an image.
public struct BootResult: Sendable {
    public var state: CPUState
    /// Where code was loaded, for the search for timestamp instructions.
    public var code: [Range<UInt64>]
}

/// Little-endian reads from a file that nobody vouches for: nil beyond its end.
struct ImageReader {
    let bytes: [UInt8]

    func load<T: FixedWidthInteger>(_ offset: Int, as type: T.Type = T.self) -> T? {
        guard offset >= 0, offset <= bytes.count - MemoryLayout<T>.size else { return nil }
        return bytes.withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: T.self)) }
    }

    func slice(_ offset: UInt64, _ count: UInt64) -> ArraySlice<UInt8>? {
        guard offset <= UInt64(bytes.count), count <= UInt64(bytes.count) - offset else { return nil }
        return bytes[Int(offset)..<Int(offset + count)]
    }
}
