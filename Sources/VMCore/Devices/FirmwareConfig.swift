/// QEMU's firmware configuration device at ports 0x510 (selector, 16 bits) and 0x511 (data, a stream of bytes).
///
/// QEMU documentation, "QEMU Firmware Configuration (fw_cfg) Device". Numbers are little-endian, those of the file
/// directory big-endian. There is no DMA interface, items can't be written, and unknown keys and whatever lies beyond
/// an item's end read as 0. The selector takes 16-bit writes only, and reads as 0.
public struct FirmwareConfig: PortDevice {
    public static let selectorPort: UInt16 = 0x510
    public static let dataPort: UInt16 = 0x511

    private enum Key {
        static let signature: UInt16 = 0x00
        static let id: UInt16 = 0x01
        static let uuid: UInt16 = 0x02
        static let ramSize: UInt16 = 0x03
        static let noGraphic: UInt16 = 0x04
        static let cpuCount: UInt16 = 0x05
        static let kernelAddress: UInt16 = 0x07
        static let kernelSize: UInt16 = 0x08
        static let initrdAddress: UInt16 = 0x0a
        static let initrdSize: UInt16 = 0x0b
        static let bootDevice: UInt16 = 0x0c
        static let bootMenu: UInt16 = 0x0e
        static let maxCPUs: UInt16 = 0x0f
        static let kernelEntry: UInt16 = 0x10
        static let kernelData: UInt16 = 0x11
        static let initrdData: UInt16 = 0x12
        static let commandLineAddress: UInt16 = 0x13
        static let commandLineSize: UInt16 = 0x14
        static let commandLineData: UInt16 = 0x15
        static let setupAddress: UInt16 = 0x16
        static let setupSize: UInt16 = 0x17
        static let setupData: UInt16 = 0x18
        static let fileDirectory: UInt16 = 0x19
        static let firstFile: UInt16 = 0x20
        /// Selects an item for writing; without effect.
        static let writeChannel: UInt16 = 0x4000
    }

    /// Feature bits of the ID item: bit 0, the traditional interface; bit 1 would be DMA.
    private static let features: UInt32 = 0b01
    private static let fileNameSize = 56
    /// Selectors end below the write channel's bit.
    private static let maxFiles = Int(Key.writeChannel - Key.firstFile)

    /// May be taken out before a checkpoint is encoded and put back after, as it never changes.
    public var contents: FirmwareContents {
        didSet { current = item(selector) }
    }
    private var selector = Key.signature
    private var offset = 0
    /// The item that `selector` names; derived, not encoded.
    private var current: [UInt8] = []

    public init(contents: FirmwareContents) {
        self.contents = contents
        current = item(selector)
    }

    private enum CodingKeys: String, CodingKey { case contents, selector, offset }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        contents = try container.decode(FirmwareContents.self, forKey: .contents)
        selector = try container.decode(UInt16.self, forKey: .selector)
        offset = try container.decode(Int.self, forKey: .offset)
        guard offset >= 0 else {
            throw DecodingError.dataCorruptedError(
                forKey: .offset, in: container, debugDescription: "a negative offset into a fw_cfg item")
        }
        current = item(selector)
    }

    public mutating func read(offset port: UInt16, size: Int, at now: Nanoseconds) -> UInt32 {
        var value: UInt32 = 0
        for i in 0..<byteCount(ofAccess: size) where port &+ UInt16(i) == 1 {
            value |= UInt32(readData()) << UInt32(8 &* i)
        }
        return value
    }

    public mutating func write(offset port: UInt16, size: Int, value: UInt32, at now: Nanoseconds) {
        guard port == 0, size == 2 else { return }
        select(UInt16(truncatingIfNeeded: value))
    }

    /// Starts item `key` from its first byte.
    public mutating func select(_ key: UInt16) {
        selector = key & ~Key.writeChannel
        offset = 0
        current = item(selector)
    }

    /// The next byte of the selected item.
    public mutating func readData() -> UInt8 {
        guard offset < current.count else { return 0 }
        defer { offset &+= 1 }
        return current[offset]
    }

    /// Back to the state after power-on; the contents stay.
    public mutating func reset() { select(Key.signature) }

    private func item(_ key: UInt16) -> [UInt8] {
        switch key {
        case Key.signature: Array("QEMU".utf8)
        case Key.id: littleEndian(Self.features)
        case Key.uuid: [UInt8](repeating: 0, count: 16)
        case Key.ramSize: littleEndian(contents.memoryBytes)
        case Key.noGraphic: littleEndian(UInt16(1))
        case Key.cpuCount: littleEndian(contents.cpuCount)
        case Key.kernelAddress: littleEndian(contents.kernel?.address ?? 0)
        case Key.kernelSize: size(of: contents.kernel)
        case Key.initrdAddress: littleEndian(contents.initrd?.address ?? 0)
        case Key.initrdSize: size(of: contents.initrd)
        case Key.bootDevice: littleEndian(UInt16(contents.bootDevice))
        case Key.bootMenu: littleEndian(UInt16(0))
        case Key.maxCPUs: littleEndian(contents.maxCPUs)
        case Key.kernelEntry: littleEndian(contents.kernelEntry)
        case Key.kernelData: contents.kernel?.bytes ?? []
        case Key.initrdData: contents.initrd?.bytes ?? []
        case Key.commandLineAddress: littleEndian(contents.commandLine?.address ?? 0)
        case Key.commandLineSize: size(of: contents.commandLine)
        case Key.commandLineData: contents.commandLine?.bytes ?? []
        case Key.setupAddress: littleEndian(contents.setup?.address ?? 0)
        case Key.setupSize: size(of: contents.setup)
        case Key.setupData: contents.setup?.bytes ?? []
        case Key.fileDirectory: fileDirectory
        case Key.firstFile..<Key.writeChannel: file(Int(key - Key.firstFile))
        default: []
        }
    }

    private func file(_ index: Int) -> [UInt8] {
        index < contents.files.count ? contents.files[index].bytes : []
    }

    /// A count, then for each file its size, selector, two reserved bytes and its name, ended by a zero.
    private var fileDirectory: [UInt8] {
        let files = contents.files.prefix(Self.maxFiles)
        var directory = bigEndian(UInt32(clamping: files.count))
        for (index, file) in files.enumerated() {
            directory += bigEndian(UInt32(clamping: file.bytes.count))
            directory += bigEndian(Key.firstFile &+ UInt16(truncatingIfNeeded: index))
            directory += [0, 0]
            let name = file.name.utf8.prefix(Self.fileNameSize - 1)
            directory += name
            directory += [UInt8](repeating: 0, count: Self.fileNameSize - name.count)
        }
        return directory
    }

    private func size(of blob: FirmwareContents.Blob?) -> [UInt8] {
        littleEndian(UInt32(clamping: blob?.bytes.count ?? 0))
    }

    private func littleEndian(_ value: some FixedWidthInteger) -> [UInt8] {
        withUnsafeBytes(of: value.littleEndian) { [UInt8]($0) }
    }

    private func bigEndian(_ value: some FixedWidthInteger) -> [UInt8] {
        withUnsafeBytes(of: value.bigEndian) { [UInt8]($0) }
    }
}
