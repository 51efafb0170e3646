/// A Linux kernel image (bzImage) and what its setup header says.
///
/// Source: Linux, Documentation/arch/x86/boot.rst; the offsets are those of its section "The Real-Mode Kernel Header",
/// the same in the file and in the boot parameters.
struct LinuxImage {
    enum Offset {
        static let setupSectors = 0x1F1
        static let protectedModeSize = 0x1F4
        static let bootFlag = 0x1FE
        static let jumpLength = 0x201
        static let magic = 0x202
        static let version = 0x206
        static let loaderType = 0x210
        static let loadFlags = 0x211
        static let code32Start = 0x214
        static let initrdAddress = 0x218
        static let initrdSize = 0x21C
        static let heapEnd = 0x224
        static let commandLineAddress = 0x228
        static let highestInitrdAddress = 0x22C
        static let kernelAlignment = 0x230
        static let isRelocatable = 0x234
        static let extendedLoadFlags = 0x236
        static let commandLineSize = 0x238
        static let setupData = 0x250
        static let preferredAddress = 0x258
        static let initSize = 0x260
    }

    enum LoadFlags {
        static let loadedHigh: UInt8 = 1 << 0
        static let canUseHeap: UInt8 = 1 << 7
    }

    private static let bootFlag: UInt16 = 0xAA55
    private static let magic: UInt32 = 0x5372_6448  // HdrS
    /// 2.06 is the first version that says how long the command line may be; Linux 2.6.22 has it.
    private static let oldestVersion: UInt16 = 0x0206
    private static let has64BitEntry: UInt16 = 1 << 0
    /// Where a kernel that names no other address is loaded.
    static let highAddress: UInt64 = 0x10_0000
    /// A loader without a number of its own.
    static let unknownLoader: UInt8 = 0xFF

    /// The whole real-mode part.
    let setup: ArraySlice<UInt8>
    let kernel: ArraySlice<UInt8>
    /// The setup header as it goes into the boot parameters: it begins at `Offset.setupSectors`.
    let header: ArraySlice<UInt8>
    let version: UInt16
    let loadFlags: UInt8
    let highestInitrdAddress: UInt64
    let longestCommandLine: Int
    /// Whether it has the entry point of the 64-bit boot protocol.
    let has64BitEntry: Bool
    /// Where the kernel wants to be.
    let address: UInt64
    /// How much memory from `address` on it needs before it knows the memory map.
    let memoryBytes: UInt64

    /// Whether a file looks like a Linux kernel, good or bad.
    static func isLinux(_ file: ImageReader) -> Bool {
        file.load(Offset.magic, as: UInt32.self) == magic && file.load(Offset.bootFlag, as: UInt16.self) == bootFlag
    }

    init(_ bytes: [UInt8]) throws(BootError) {
        let file = ImageReader(bytes: bytes)
        guard Self.isLinux(file) else { throw .badImage("not a Linux kernel: it has no setup header") }
        guard let version: UInt16 = file.load(Offset.version), let sectors: UInt8 = file.load(Offset.setupSectors),
            let jump: UInt8 = file.load(Offset.jumpLength), let units: UInt32 = file.load(Offset.protectedModeSize),
            let flags: UInt8 = file.load(Offset.loadFlags), let initrdLimit: UInt32 = file.load(Offset.highestInitrdAddress),
            let lineSize: UInt32 = file.load(Offset.commandLineSize)
        else { throw .badImage("the kernel's setup header is cut off") }
        guard version >= Self.oldestVersion else {
            throw .badImage("the kernel speaks boot protocol \(version >> 8).\(version & 0xFF); "
                + "\(Self.oldestVersion >> 8).\(Self.oldestVersion & 0xFF) is the oldest that works")
        }
        guard flags & LoadFlags.loadedHigh != 0 else {
            throw .badImage("a zImage, which runs below 1 MiB; only bzImages can be started")
        }
        // 0 means 4, as in the boot sectors of old; the boot sector itself isn't counted.
        let setupBytes = (Int(sectors == 0 ? 4 : sectors) + 1) * 512
        let kernelBytes = Int(units) * 16
        guard kernelBytes > 0, bytes.count >= setupBytes + kernelBytes else {
            throw .badImage("the kernel is cut off: its header speaks of \(setupBytes + kernelBytes) bytes, "
                + "the file has \(bytes.count)")
        }
        let headerEnd = Offset.magic + Int(jump)
        guard headerEnd > Offset.commandLineSize + 3, headerEnd <= setupBytes else {
            throw .badImage("the kernel's setup header is damaged: it ends at \(hex(headerEnd))")
        }
        setup = bytes[..<setupBytes]
        kernel = bytes[setupBytes..<(setupBytes + kernelBytes)]
        header = bytes[Offset.setupSectors..<headerEnd]
        self.version = version
        loadFlags = flags
        highestInitrdAddress = UInt64(initrdLimit)
        longestCommandLine = Int(lineSize)
        // What a field beyond the header's end holds is code.
        func field<T: FixedWidthInteger>(_ offset: Int, since: UInt16, _ type: T.Type) -> T? {
            version >= since && offset + MemoryLayout<T>.size <= headerEnd ? file.load(offset) : nil
        }
        has64BitEntry = (field(Offset.extendedLoadFlags, since: 0x020C, UInt16.self) ?? 0) & Self.has64BitEntry != 0
        address = field(Offset.preferredAddress, since: 0x020A, UInt64.self) ?? Self.highAddress
        let needed = field(Offset.initSize, since: 0x020A, UInt32.self) ?? 0
        memoryBytes = max(UInt64(needed), UInt64(kernelBytes))
        guard address >= Self.highAddress, address < 4 << 30 else {
            throw .badImage("the kernel's setup header is damaged: it wants to be loaded at \(hex(address))")
        }
    }
}
