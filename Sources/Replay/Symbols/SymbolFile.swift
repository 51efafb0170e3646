import VMCore

/// A file that names a guest's addresses.
public struct SymbolFile: Sendable {
    public var symbols: [Symbol]
    /// How the stack is unwound, where the file is the image of a Linux kernel that says so.
    public var unwinding: OrcTable?

    /// Reads an ELF file's symbols, the ones that a Linux kernel carries in its image (bzImage or vmlinux), or the lines of
    /// a System.map.
    public init(_ bytes: [UInt8]) throws(SymbolError) {
        if let kernel = try Self.kernel(bytes) {
            (symbols, unwinding) = (try Self.symbols(of: kernel), OrcTable(kernel))
        } else if bytes.starts(with: ELFImage.magic) {
            symbols = try ELFSymbols.read(bytes)
        } else {
            symbols = try SystemMap.read(bytes)
        }
    }

    /// The file as a Linux kernel; nil where it is none.
    private static func kernel(_ bytes: [UInt8]) throws(SymbolError) -> ELFImage? {
        if bytes.starts(with: ELFImage.magic) {
            guard let image = try? ELFImage(bytes), image.section("__ksymtab") != nil else { return nil }
            return image
        }
        guard LinuxPayload.isBzImage(bytes) else { return nil }
        do { return try ELFImage(LinuxPayload.kernel(in: bytes)) } catch { throw SymbolError(error.description) }
    }

    private static func symbols(of kernel: ELFImage) throws(SymbolError) -> [Symbol] {
        // One that isn't stripped has more: sizes, and what isn't code or data.
        if let symbols = try? ELFSymbols.read(kernel.bytes) { return symbols }
        do { return sized(try KernelSymbols(kernel).symbols) } catch { throw SymbolError(error.description) }
    }

    /// A kernel's own table has no sizes: what lies at one address ends where the next begins. Of several names for one
    /// address the first counts, as in the kernel's own messages.
    private static func sized(_ symbols: [KernelSymbols.Symbol]) -> [Symbol] {
        var list: [Symbol] = []
        list.reserveCapacity(symbols.count)
        var first = 0
        for symbol in symbols {
            if let start = list.last?.address, start != symbol.address {
                list[first].size = symbol.address - start
                first = list.count
            }
            list.append(Symbol(name: symbol.name, address: symbol.address))
        }
        return list
    }
}

/// Where a kernel runs, and how its stack is unwound there.
public struct KernelUnwinding: Sendable {
    public var table: OrcTable
    /// How far the kernel lies from where it was linked.
    public var slide: UInt64

    public init(table: OrcTable, slide: UInt64) {
        self.table = table
        self.slide = slide
    }
}
